//! A lane: jobs that hash and touch the disk, done in their order by as few of the blocking threads as keep up with them.
//! Where jobs are short, a thread that wakes up for each of them costs more than it brings: they take the processors from
//! the very threads that they wait for, and wait behind each other at one while another is idle. It knows nothing of what
//! the jobs do.

use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Where the oldest job has waited for this long, another thread helps: those at work may be held up by a disk.
const PATIENCE: Duration = Duration::from_millis(5);

type Job = Box<dyn FnOnce() + Send>;

/// Jobs for the blocking threads. How many may wait is bounded by a budget of whoever hands them over: a job holds room in
/// it until it is done.
pub(super) struct Lane {
    state: Mutex<State>,
    /// So many work at once however short the queue is.
    threads: usize,
    patience: Duration,
}

#[derive(Default)]
struct State {
    /// Those that wait and since when, the oldest first.
    jobs: VecDeque<(Instant, Job)>,
    /// Threads at work.
    busy: usize,
}

impl Lane {
    /// Half as many threads as there are processors: the other half is for those that the runtime runs on.
    pub(super) fn new() -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self::of(processors.div_ceil(2), PATIENCE)
    }

    fn of(threads: usize, patience: Duration) -> Arc<Self> {
        Arc::new(Lane { state: Mutex::default(), threads, patience })
    }

    /// Does a job when those before it are done or under way. A panic of it ends nothing else. Called within a runtime.
    pub(super) fn run(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        state.jobs.push_back((Instant::now(), Box::new(job)));
        self.staff(state);
    }

    /// The same for a job that gives something.
    pub(super) fn begin<T: Send + 'static>(self: &Arc<Self>, job: impl FnOnce() -> T + Send + 'static) -> Pending<T> {
        let (give, given) = oneshot::channel();
        self.run(move || {
            if !give.is_closed() {
                // by now nobody may wait for it
                let _gone = give.send(job());
            }
        });
        Pending { lane: self.clone(), given }
    }

    /// Waits for what jobs of this lane lead to, and sees to it that one which is held up does not hold up the others. Safe
    /// to cancel if `what` is.
    pub(super) async fn wait<T>(self: &Arc<Self>, what: impl Future<Output = T>) -> T {
        let mut what = std::pin::pin!(what);
        loop {
            match tokio::time::timeout(self.patience, &mut what).await {
                Ok(given) => return given,
                Err(_) => self.staff(self.state()),
            }
        }
    }

    /// Held for moments.
    fn state(&self) -> MutexGuard<'_, State> {
        // nothing panics that holds it
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls for another thread where one is needed.
    fn staff(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let Some((since, _)) = state.jobs.front() else { return };
        if state.busy < self.threads || since.elapsed() >= self.patience {
            state.busy += 1;
            drop(state);
            let lane = self.clone();
            // it ends when there is nothing left to do
            drop(tokio::task::spawn_blocking(move || lane.work()));
        }
    }

    fn work(&self) {
        loop {
            let mut state = self.state();
            let Some((_, job)) = state.jobs.pop_front() else {
                state.busy -= 1;
                return;
            };
            drop(state);
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("work on leaves panicked");
            }
        }
    }
}

/// What a job gives. Whoever drops it needs it no more; a job that has not begun is left out.
pub(super) struct Pending<T> {
    lane: Arc<Lane>,
    given: oneshot::Receiver<T>,
}

impl<T> Pending<T> {
    /// Waits for it; `None` if the job panicked, or the runtime ends.
    pub(super) async fn wait(self) -> Option<T> {
        self.lane.wait(self.given).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread};

    #[tokio::test]
    async fn one_thread_does_all_that_came_meanwhile() {
        let (lane, (open, door)) = (Lane::of(1, Duration::MAX), mpsc::sync_channel(1));
        let first = lane.begin(move || (door.recv().unwrap(), thread::current().id()));
        let later: Vec<_> = (0..100).map(|n| lane.begin(move || (n, thread::current().id()))).collect();
        open.send(1000).unwrap();
        let (_, one) = first.wait().await.unwrap();
        for (n, pending) in later.into_iter().enumerate() {
            assert_eq!(pending.wait().await, Some((n, one)));
        }
    }

    #[tokio::test]
    async fn jobs_are_done_in_their_order() {
        let (lane, (tell, told)) = (Lane::of(1, Duration::MAX), mpsc::sync_channel(100));
        (0..100).for_each(|n| {
            let tell = tell.clone();
            lane.run(move || tell.send(n).unwrap());
        });
        lane.begin(|| ()).wait().await.unwrap();
        assert_eq!(told.try_iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_job_that_is_held_up_holds_up_no_other() {
        let (lane, (open, door)) = (Lane::of(1, Duration::from_millis(1)), mpsc::sync_channel(1));
        let first = lane.begin(move || door.recv().unwrap());
        assert_eq!(lane.begin(|| 2).wait().await, Some(2));
        open.send(1).unwrap();
        assert_eq!(first.wait().await, Some(1));
    }

    #[tokio::test]
    async fn a_panic_ends_one_job() {
        let lane = Lane::of(1, Duration::MAX);
        let first = lane.begin(|| panic!("on purpose"));
        let second = lane.begin(|| 2);
        assert_eq!(first.wait().await, None::<()>);
        assert_eq!(second.wait().await, Some(2));
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_left_out() {
        let (lane, (open, door), (tell, told)) =
            (Lane::of(1, Duration::MAX), mpsc::sync_channel(1), mpsc::sync_channel(1));
        let first = lane.begin(move || door.recv().unwrap());
        drop(lane.begin(move || tell.send(()).unwrap()));
        open.send(()).unwrap();
        first.wait().await.unwrap();
        lane.begin(|| ()).wait().await.unwrap();
        assert!(told.try_recv().is_err());
    }
}
