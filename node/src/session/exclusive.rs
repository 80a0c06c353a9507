//! What of a SUBSCRIBE must be asked of the control plane first: exclusive subscriptions.
//!
//! ```text
//!   SUBSCRIBE ─▶ what is exclusive, and what gives it back ─▶ control plane ─ refused: 0x97, and nothing else becomes of it
//!                                                                  └ granted ─▶ as any other subscription
//! ```
//!
//! Sans-io. First, so that nothing is delivered for a subscription that is refused then. A durable session has subscribed by
//! that already, and does so once more with the rest of the packet, which changes nothing for what it holds. An ephemeral one
//! has its subscriptions at its node, and only the claim in the control plane.

use std::collections::HashSet;

use lontra_storage::command::Subscription;

use crate::protocol::codec::ReasonCode;

/// Positions of the subscriptions that are asked for first, in the order of the packet. `holds`: which exclusive ones an
/// ephemeral session has; a durable one gives them back by the subscription itself.
pub fn claims(subscriptions: &[Subscription], is_durable: bool, holds: impl Fn(&str) -> bool) -> Vec<usize> {
    let exclusive = subscriptions.iter().filter(|one| one.exclusive);
    let exclusive: HashSet<&str> = exclusive.map(|one| &*one.filter).collect();
    let is_claim = |one: &Subscription| match is_durable {
        true => one.exclusive,
        false => holds(&one.filter) || exclusive.contains(&*one.filter),
    };
    let positions = (0..).zip(subscriptions).filter(|(_, one)| is_claim(one));
    positions.map(|(position, _)| position).collect()
}

/// Takes out what was refused, by ascending positions; `reasons` that are below 0x80 belong to `subscriptions`, in order.
pub fn refuse(subscriptions: &mut Vec<Subscription>, reasons: &mut [ReasonCode], refused: &[usize]) {
    let granted = reasons.iter_mut().filter(|reason| !reason.is_error());
    for (position, reason) in granted.enumerate() {
        if refused.binary_search(&position).is_ok() {
            *reason = ReasonCode::QUOTA_EXCEEDED;
        }
    }
    let mut position = 0;
    subscriptions.retain(|_| {
        position += 1;
        refused.binary_search(&(position - 1)).is_err()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `!a` is `$exclusive/a`.
    fn subscriptions(filters: &[&str]) -> Vec<Subscription> {
        let subscription = |filter: &&str| Subscription {
            filter: filter.trim_start_matches('!').into(),
            qos: 1,
            no_local: false,
            retain_as_published: false,
            retain_handling: 0,
            identifier: None,
            exclusive: filter.starts_with('!'),
        };
        filters.iter().map(subscription).collect()
    }

    #[test]
    fn what_concerns_a_claim_is_asked_first() {
        let check = |filters: &[&str], durable: &[usize], ephemeral: &[usize]| {
            let all = subscriptions(filters);
            assert_eq!(
                claims(&all, true, |_| unreachable!("told by meta")),
                durable,
                "{filters:?}"
            );
            assert_eq!(claims(&all, false, |filter| filter == "held"), ephemeral, "{filters:?}");
        };
        check(&["a", "$share/g/a"], &[], &[]);
        check(&["a", "!b", "!a", "b", "c"], &[1, 2], &[0, 1, 2, 3]);
        check(&["a", "held"], &[], &[1]);
        check(&["!held"], &[0], &[0]);
    }

    #[test]
    fn what_is_refused_leaves_the_packet_with_its_reason() {
        let mut all = subscriptions(&["a", "!b", "!c", "d"]);
        let bad = ReasonCode::TOPIC_FILTER_INVALID;
        let mut reasons = vec![bad, ReasonCode(1), ReasonCode(2), bad, ReasonCode(0), ReasonCode(1)];
        refuse(&mut all, &mut reasons, &[1, 3]);
        assert_eq!(all, subscriptions(&["a", "!c"]));
        let full = ReasonCode::QUOTA_EXCEEDED;
        assert_eq!(reasons, [bad, ReasonCode(1), full, bad, ReasonCode(0), full]);
    }
}
