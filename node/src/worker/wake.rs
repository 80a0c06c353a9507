//! How a connection's task is woken by what happens on its thread: one word, and the waker of the task.
//!
//! ```text
//!   outbox, outcome, fence ─ notify_one ─┐
//!                                        ├─▶ word ─▶ the task takes all of it at once
//!   Deadlines ─────────────── deadline ──┘
//! ```
//!
//! Of one thread, like everything of a connection: neither an atomic nor a list of those who wait is needed.
//!
//! Invariant `wake-kept`: what was noted before the task looks is seen when it looks; what is noted afterwards wakes it.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};

/// Of one connection, whose task alone waits for it.
#[derive(Default)]
pub struct Wake {
    is_woken: Cell<bool>,
    is_due: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// What the task was woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Woken {
    /// Its deadline has passed, or one that it had meanwhile put off.
    pub is_due: bool,
}

impl Wake {
    /// Something happened that the task must act on.
    pub fn notify_one(&self) {
        if !self.is_woken.replace(true)
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    /// The deadline that stood in [`Deadlines`](super::deadlines::Deadlines) has passed.
    pub fn deadline(&self) {
        self.is_due.set(true);
        self.notify_one();
    }

    /// Takes what was noted; otherwise the task is woken by the next that is.
    pub fn poll(&self, context: &mut Context<'_>) -> Poll<Woken> {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
        if !self.is_woken.replace(false) {
            return Poll::Pending;
        }
        let is_due = self.is_due.replace(false);
        Poll::Ready(Woken { is_due })
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake as Wakes;

    use super::*;

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Wakes for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Notify,
        Due,
        /// The task looks, under another waker.
        Look(usize),
    }

    /// Every sequence of steps: what was noted is seen by the next look, once; and a task that looked in vain is woken by
    /// what comes next, under the waker that it looked with last.
    #[test]
    fn wake_kept_in_every_order() {
        const STEPS: [Step; 4] = [Step::Notify, Step::Due, Step::Look(0), Step::Look(1)];
        const LENGTH: u32 = 7;
        for sequence in 0..STEPS.len().pow(LENGTH) {
            let steps = (0..LENGTH).map(|at| STEPS[sequence / STEPS.len().pow(at) % STEPS.len()]);
            let steps: Vec<Step> = steps.collect();
            let counts = [Arc::new(Counted::default()), Arc::new(Counted::default())];
            let wakers = counts.each_ref().map(|count| Waker::from(count.clone()));
            let wake = Wake::default();
            let (mut noted, mut due) = (false, false);
            // The waker of a look that found nothing, and how often it had been called.
            let mut waits: Option<(usize, usize)> = None;
            for step in &steps {
                match *step {
                    Step::Notify => wake.notify_one(),
                    Step::Due => wake.deadline(),
                    Step::Look(by) => {
                        let found = wake.poll(&mut Context::from_waker(&wakers[by]));
                        let expected = match noted {
                            true => Poll::Ready(Woken { is_due: due }),
                            false => Poll::Pending,
                        };
                        assert_eq!(found, expected, "{steps:?}");
                        (noted, due) = (false, false);
                        waits = found.is_pending().then(|| (by, counts[by].0.load(Ordering::Relaxed)));
                        continue;
                    }
                }
                (noted, due) = (true, due || matches!(step, Step::Due));
                if let Some((by, before)) = waits.take() {
                    assert_eq!(counts[by].0.load(Ordering::Relaxed), before + 1, "{steps:?}");
                }
            }
        }
    }

    /// On the runtime that workers have: many tasks that note things for each other, none of which waits for ever.
    #[test]
    fn wake_kept_among_tasks_of_a_thread() {
        const TASKS: usize = 32;
        const ROUNDS: usize = 500;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let local = tokio::task::LocalSet::new();
        let ring: Rc<Vec<(Wake, Cell<usize>)>> = Rc::new((0..TASKS).map(|_| Default::default()).collect());
        let tasks = (0..TASKS).map(|at| {
            let ring = ring.clone();
            local.spawn_local(async move {
                for round in 1..=ROUNDS {
                    let next = &ring[(at + 1) % TASKS];
                    next.1.set(next.1.get() + 1);
                    next.0.notify_one();
                    if round % 7 == at % 7 {
                        tokio::task::yield_now().await;
                    }
                    while ring[at].1.get() < round {
                        std::future::poll_fn(|context| ring[at].0.poll(context)).await;
                    }
                }
            })
        });
        let tasks: Vec<_> = tasks.collect();
        local.block_on(&runtime, async {
            for task in tasks {
                task.await.expect("no panic");
            }
        });
    }

    #[test]
    fn it_is_four_words() {
        assert!(size_of::<Wake>() <= 4 * size_of::<usize>(), "{}", size_of::<Wake>());
    }
}
