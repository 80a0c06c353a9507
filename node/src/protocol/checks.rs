//! Checks that can be taken away, for proof that the tests of conformance and of attacks miss each: in a build with the feature `test-bugs`
//! the variable `LONTRA_REMOVED_CHECK` names one. Without the feature [`on`] is a constant, and every check stands.
//!
//! `ops/checks/removed_checks` takes them away one at a time; `ops/checks/removed_checks.tsv` has the statement of each and the
//! test that must fail.

/// A check, by what passes without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// U+0000 in a string. [MQTT-1.5.4-2]
    StringNul,
    /// A Remaining Length that is longer than needed. [MQTT-1.5.5-1]
    LengthMinimal,
    /// Flags of PINGREQ. [MQTT-2.1.3-1]
    PingReqFlags,
    /// [MQTT-3.8.1-1]
    SubscribeFlags,
    /// [MQTT-3.10.1-1]
    UnsubscribeFlags,
    /// [MQTT-3.14.1-1]
    DisconnectFlags,
    /// [MQTT-3.1.2-3]
    ConnectReserved,
    /// Will QoS and Will Retain without a will. [MQTT-3.1.2-11]
    WillFlags,
    /// [v3 MQTT-3.1.2-22]
    PasswordAlone,
    /// [v3 MQTT-3.1.3-8]
    EmptyClientId,
    /// [MQTT-3.3.1-2]
    DupAtQos0,
    /// [MQTT-3.3.2-2]
    WildcardInName,
    /// [MQTT-3.3.2-14]
    WildcardInResponseTopic,
    /// [MQTT-3.8.3-5]
    SubscribeReserved,
    /// [MQTT-3.8.3-4]
    NoLocalOnShared,
    /// [MQTT-3.8.3-2]
    SubscribeEmpty,
    /// [MQTT-3.10.3-2]
    UnsubscribeEmpty,
    /// [MQTT-4.7.1-1]
    HashAlone,
    /// [MQTT-4.7.1-2]
    PlusAlone,
    /// [MQTT-4.8.2-1]
    ShareName,
    /// [MQTT-3.3.4-6]
    PropertySide,
    /// [MQTT 5 section 2.2.2.2]
    PropertyTwice,
    /// [MQTT-3.2.2-17]
    AliasMaximum,
    /// [MQTT-3.1.2-29]
    ProblemInformation,
    /// [MQTT-3.1.2-24]
    MaximumPacketSize,
    /// DISCONNECT 0x00 takes the will back. [MQTT-3.14.4-3]
    WillTakenBack,
    /// DISCONNECT with an expiry that CONNECT did not have. [MQTT 5 section 3.14.2.2.2]
    DisconnectExpiry,
    /// What rules say of a PUBLISH.
    PublishRules,
    /// What rules say of a message before it is delivered.
    ReadRules,
    /// A shared subscription must be readable as a whole.
    SharedAsAWhole,
    /// Names with wildcards have no part in patterns.
    WildNames,
    /// What rules say of a will.
    WillRules,
    /// Whose client id it is.
    ClientIdOfUser,
    /// Who signed a token.
    TokenSignature,
    /// A connection ends with its token.
    TokenEnds,
    /// The server that is asked says no.
    HookDenies,
    /// A password is the one of its user.
    Password,
    /// Who shows nothing is let in nowhere but where that is configured.
    Anonymous,
    /// The proof is one of the password.
    ScramProof,
    /// An address that guesses waits.
    FailedLogins,
    /// Whoever a reload has removed is let go.
    UserRemoved,
    /// Who is banned is let in nowhere.
    Ban,
    /// A certificate that is good no more ends its connection.
    CertificateAgain,
    /// A user has a number of connections.
    UserConnections,
}

impl Check {
    pub const ALL: [(&str, Check); 44] = [
        ("string_nul", Check::StringNul),
        ("length_minimal", Check::LengthMinimal),
        ("pingreq_flags", Check::PingReqFlags),
        ("subscribe_flags", Check::SubscribeFlags),
        ("unsubscribe_flags", Check::UnsubscribeFlags),
        ("disconnect_flags", Check::DisconnectFlags),
        ("connect_reserved", Check::ConnectReserved),
        ("will_flags", Check::WillFlags),
        ("password_alone", Check::PasswordAlone),
        ("empty_client_id", Check::EmptyClientId),
        ("dup_at_qos_0", Check::DupAtQos0),
        ("wildcard_in_name", Check::WildcardInName),
        ("wildcard_in_response_topic", Check::WildcardInResponseTopic),
        ("subscribe_reserved", Check::SubscribeReserved),
        ("no_local_on_shared", Check::NoLocalOnShared),
        ("subscribe_empty", Check::SubscribeEmpty),
        ("unsubscribe_empty", Check::UnsubscribeEmpty),
        ("hash_alone", Check::HashAlone),
        ("plus_alone", Check::PlusAlone),
        ("share_name", Check::ShareName),
        ("property_side", Check::PropertySide),
        ("property_twice", Check::PropertyTwice),
        ("alias_maximum", Check::AliasMaximum),
        ("problem_information", Check::ProblemInformation),
        ("maximum_packet_size", Check::MaximumPacketSize),
        ("will_taken_back", Check::WillTakenBack),
        ("disconnect_expiry", Check::DisconnectExpiry),
        ("publish_rules", Check::PublishRules),
        ("read_rules", Check::ReadRules),
        ("shared_as_a_whole", Check::SharedAsAWhole),
        ("wild_names", Check::WildNames),
        ("will_rules", Check::WillRules),
        ("client_id_of_user", Check::ClientIdOfUser),
        ("token_signature", Check::TokenSignature),
        ("token_ends", Check::TokenEnds),
        ("hook_denies", Check::HookDenies),
        ("password", Check::Password),
        ("anonymous", Check::Anonymous),
        ("scram_proof", Check::ScramProof),
        ("failed_logins", Check::FailedLogins),
        ("user_removed", Check::UserRemoved),
        ("ban", Check::Ban),
        ("certificate_again", Check::CertificateAgain),
        ("user_connections", Check::UserConnections),
    ];
}

/// Whether the check is made.
#[cfg(not(feature = "test-bugs"))]
#[inline(always)]
pub const fn on(_: Check) -> bool {
    true
}

/// Whether the check is made.
///
/// # Panics
/// `LONTRA_REMOVED_CHECK` names none.
#[cfg(feature = "test-bugs")]
pub fn on(check: Check) -> bool {
    use std::sync::OnceLock;
    static REMOVED: OnceLock<Option<Check>> = OnceLock::new();
    let removed = REMOVED.get_or_init(|| {
        let name = std::env::var("LONTRA_REMOVED_CHECK").ok()?;
        let found = Check::ALL.iter().find(|(known, _)| *known == name);
        Some(
            found
                .unwrap_or_else(|| panic!("LONTRA_REMOVED_CHECK: there is no check {name}"))
                .1,
        )
    });
    *removed != Some(check)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_name_of_its_own() {
        let mut names: Vec<&str> = Check::ALL.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Check::ALL.len());
        for (at, (name, check)) in Check::ALL.iter().enumerate() {
            assert!(
                !Check::ALL[..at].iter().any(|(_, before)| before == check),
                "{name} comes twice"
            );
        }
    }
}
