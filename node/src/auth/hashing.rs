//! Where passwords are checked: off the workers' threads, a few at a time, addresses in turns.
//!
//! ```text
//!   10.0.0.1 ─▶ ▮▮▮▮▮▮▮▮ ─┐                  one from each address that waits, round and round
//!   10.0.0.2 ─▶ ▮         ─┼─▶ a place, when one is free
//!   10.0.0.3 ─▶ ▮▮        ─┘                  full: the last of the longest queue gives way to who has fewer there
//! ```
//!
//! Invariants
//! - `bounded`: at most so many hashes run and so many wait; beyond, a CONNECT is refused as busy, and comes back.
//!   An attacker's CONNECTs thus take a bounded part of the machine, and hold nobody who is connected.
//! - an address waits for at most one hash of each other address that waits, times its own that were there before.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::limits::admission::Source;

/// One for the node, whatever is reloaded.
#[derive(Clone, Debug)]
pub struct Hashing {
    turns: Arc<Mutex<Turns>>,
    waiting_max: usize,
}

/// As many wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// Who is next. Behind a short lock that guards nothing else.
#[derive(Debug)]
struct Turns {
    free: usize,
    waiting: usize,
    /// None: of no address (Unix sockets, operators). No queue is empty.
    queues: HashMap<Option<Source>, VecDeque<oneshot::Sender<Place>>>,
    /// Those that have a queue, in the order of their turns.
    round: VecDeque<Option<Source>>,
}

/// Leave to hash; passed on when dropped. None: it was.
#[derive(Debug)]
struct Place(Option<Arc<Mutex<Turns>>>);

impl Hashing {
    pub fn new(parallel: usize, waiting_max: usize) -> Self {
        Hashing {
            turns: Arc::new(Mutex::new(Turns {
                free: parallel.max(1),
                waiting: 0,
                queues: HashMap::new(),
                round: VecDeque::new(),
            })),
            waiting_max,
        }
    }

    /// Half of the cores hash at the worst.
    pub fn for_cores(cores: usize) -> Self {
        Hashing::new(cores / 2, WAITING_MAX)
    }

    /// Runs `check` on a thread that may block, when it is the turn of who asks from `address`.
    ///
    /// # Errors
    /// Too many wait already, or came since from addresses that had fewer here.
    ///
    /// # Cancel safety
    /// A check that has begun goes on, and holds its place until it is done.
    pub async fn run<T: Send + 'static>(
        &self,
        address: Option<IpAddr>,
        runtime: &Handle,
        check: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let place = match self.enter(address.map(Source::from))? {
            Entered::Now => Place(Some(self.turns.clone())),
            Entered::Waits(turn) => turn.await.map_err(|_| Busy)?,
        };
        let checked = runtime.spawn_blocking(move || {
            let result = check();
            drop(place);
            result
        });
        checked.await.map_err(|_| Busy)
    }

    fn enter(&self, source: Option<Source>) -> Result<Entered, Busy> {
        let mut turns = locked(&self.turns);
        if turns.free > 0 {
            turns.free -= 1;
            return Ok(Entered::Now);
        }
        if turns.waiting >= self.waiting_max {
            turns.forget_the_gone();
        }
        // Dropped behind the lock: it wakes somebody.
        let mut displaced = None;
        if turns.waiting >= self.waiting_max {
            displaced = Some(turns.displace_for(source).ok_or(Busy)?);
        }
        let (sender, turn) = oneshot::channel();
        turns.push(source, sender);
        drop(turns);
        drop(displaced);
        Ok(Entered::Waits(turn))
    }

    #[cfg(test)]
    fn waiting(&self) -> usize {
        locked(&self.turns).waiting
    }
}

enum Entered {
    Now,
    Waits(oneshot::Receiver<Place>),
}

impl Turns {
    fn push(&mut self, source: Option<Source>, sender: oneshot::Sender<Place>) {
        let queue = self.queues.entry(source).or_default();
        if queue.is_empty() {
            self.round.push_back(source);
        }
        queue.push_back(sender);
        self.waiting += 1;
    }

    /// The first of the source whose turn it is.
    fn pop(&mut self) -> Option<oneshot::Sender<Place>> {
        let source = self.round.pop_front()?;
        let queue = self.queues.get_mut(&source)?;
        let first = queue.pop_front();
        match queue.is_empty() {
            true => drop(self.queues.remove(&source)),
            false => self.round.push_back(source),
        }
        self.waiting -= usize::from(first.is_some());
        first
    }

    /// Who gave up while it waited takes no room.
    fn forget_the_gone(&mut self) {
        for queue in self.queues.values_mut() {
            queue.retain(|sender| !sender.is_closed());
        }
        self.queues.retain(|_, queue| !queue.is_empty());
        let queues = &self.queues;
        self.round.retain(|source| queues.contains_key(source));
        self.waiting = queues.values().map(VecDeque::len).sum();
    }

    /// The last of the longest queue, if that stays no shorter than the queue of `source` becomes.
    fn displace_for(&mut self, source: Option<Source>) -> Option<oneshot::Sender<Place>> {
        let own = self.queues.get(&source).map_or(0, VecDeque::len);
        let longest = self.queues.values_mut().max_by_key(|queue| queue.len())?;
        // So it is not emptied either.
        let displaced = (longest.len() > own + 1).then(|| longest.pop_back())?;
        self.waiting -= usize::from(displaced.is_some());
        displaced
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        loop {
            let next = {
                let mut turns = locked(&turns);
                let next = turns.pop();
                turns.free += usize::from(next.is_none());
                next
            };
            // Outside the lock: a place that is sent in vain is dropped here.
            match next.map(|next| next.send(Place(Some(turns.clone())))) {
                None | Some(Ok(())) => return,
                // It has gone: the one behind it.
                Some(Err(mut unused)) => unused.0 = None,
            }
        }
    }
}

fn locked(turns: &Mutex<Turns>) -> MutexGuard<'_, Turns> {
    turns.lock().unwrap_or_else(PoisonError::into_inner)
}

/// At 30 ms each on two cores, the last of them waits for 8 s.
const WAITING_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    type Order = Arc<Mutex<Vec<&'static str>>>;

    /// Takes the only place until the sender is used.
    async fn hold(hashing: &Hashing) -> (mpsc::Sender<()>, tokio::task::JoinHandle<Result<bool, Busy>>) {
        let (go, wait) = mpsc::channel::<()>();
        let held = tokio::spawn({
            let hashing = hashing.clone();
            async move { hashing.run(None, &Handle::current(), move || wait.recv().is_ok()).await }
        });
        while locked(&hashing.turns).free > 0 {
            tokio::task::yield_now().await;
        }
        (go, held)
    }

    /// Asks, and returns once it waits or is refused.
    async fn ask(hashing: &Hashing, address: &'static str, order: &Order) -> tokio::task::JoinHandle<Result<(), Busy>> {
        let (hashing, order) = (hashing.clone(), order.clone());
        let asked = tokio::spawn(async move {
            let check = move || order.lock().expect("no panic").push(address);
            let address = Some(address.parse().expect("an address"));
            hashing.run(address, &Handle::current(), check).await
        });
        // On the test's one thread the task runs to its first wait.
        tokio::task::yield_now().await;
        asked
    }

    #[tokio::test]
    async fn one_more_than_may_wait_is_refused_and_a_place_comes_back() {
        let hashing = Hashing::new(1, 1);
        let order = Order::default();
        let (go, first) = hold(&hashing).await;
        let second = ask(&hashing, "10.0.0.1", &order).await;
        assert_eq!(hashing.waiting(), 1);
        let runtime = Handle::current();
        assert_eq!(hashing.run(None, &runtime, || true).await, Err(Busy));
        go.send(()).expect("the first waits for it");
        assert_eq!(first.await.expect("no panic"), Ok(true));
        assert_eq!(second.await.expect("no panic"), Ok(()));
        assert_eq!(hashing.run(None, &runtime, || true).await, Ok(true));
        assert_eq!((hashing.waiting(), locked(&hashing.turns).free), (0, 1));
    }

    #[tokio::test]
    async fn addresses_take_turns() {
        let hashing = Hashing::new(1, 100);
        let order = Order::default();
        let (go, held) = hold(&hashing).await;
        let mut asked = Vec::new();
        for address in ["10.0.0.1"; 5] {
            asked.push(ask(&hashing, address, &order).await);
        }
        // One network of IPv6 is one source.
        for address in ["10.0.0.2", "2001:db8::1", "2001:db8::2"] {
            asked.push(ask(&hashing, address, &order).await);
        }
        assert_eq!(hashing.waiting(), 8);
        go.send(()).expect("the first waits for it");
        held.await.expect("no panic").expect("it had a place");
        for one in asked {
            assert_eq!(one.await.expect("no panic"), Ok(()));
        }
        let (a, b) = ("10.0.0.1", "10.0.0.2");
        let expected = [a, b, "2001:db8::1", a, "2001:db8::2", a, a, a];
        assert_eq!(*order.lock().expect("no panic"), expected);
        assert_eq!(locked(&hashing.turns).free, 1);
        assert!(locked(&hashing.turns).queues.is_empty() && locked(&hashing.turns).round.is_empty());
    }

    #[tokio::test]
    async fn the_longest_queue_gives_way_and_who_has_gone_takes_no_room() {
        let hashing = Hashing::new(1, 4);
        let order = Order::default();
        let (go, held) = hold(&hashing).await;
        let mut flood = Vec::new();
        for address in ["10.0.0.1"; 4] {
            flood.push(ask(&hashing, address, &order).await);
        }
        let other = ask(&hashing, "10.0.0.2", &order).await;
        assert_eq!(
            flood.remove(3).await.expect("no panic"),
            Err(Busy),
            "the last of the flood"
        );
        let more = ask(&hashing, "10.0.0.1", &order).await;
        assert_eq!(more.await.expect("no panic"), Err(Busy), "it has the longest queue");
        // One that gives up makes room.
        let gone = flood.remove(0);
        gone.abort();
        assert!(gone.await.is_err());
        let third = ask(&hashing, "10.0.0.1", &order).await;
        assert_eq!(hashing.waiting(), 4);
        // And one that gives up is passed over when its turn comes.
        let gone = flood.remove(0);
        gone.abort();
        assert!(gone.await.is_err());
        go.send(()).expect("the first waits for it");
        held.await.expect("no panic").expect("it had a place");
        for one in [other, third, flood.remove(0)] {
            assert_eq!(one.await.expect("no panic"), Ok(()));
        }
        assert_eq!((hashing.waiting(), locked(&hashing.turns).free), (0, 1));
    }
}
