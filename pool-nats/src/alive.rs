//! The workers of a node that its events have told of, and the inputs that they run: what ends if the node is lost.

use std::collections::BTreeMap;
use std::time::Duration;

use pool_core::Event;
use pool_core::backend::News;

/// By the process id of the worker: the event that told of it, and the one that told of its input.
#[derive(Debug, Default)]
pub(crate) struct Alive(BTreeMap<u32, (News, Option<News>)>);

impl Alive {
    /// Notes what a node tells.
    pub(crate) fn note(&mut self, news: &News) {
        let News::Event(event) = news else {
            return;
        };
        let Alive(workers) = self;
        match event {
            Event::WorkerStarted { pid, .. } => {
                workers.insert(*pid, (news.clone(), None));
            }
            Event::WorkerDied { pid, .. } | Event::WorkerRecycled { pid, .. } => {
                workers.remove(pid);
            }
            Event::InputBegan { pid, .. } => {
                if let Some((_, running)) = workers.get_mut(pid) {
                    *running = Some(news.clone());
                }
            }
            Event::InputEnded { pid, .. } => {
                if let Some((_, running)) = workers.get_mut(pid) {
                    *running = None;
                }
            }
            _ => {}
        }
    }

    /// Returns what happened to them when the node was lost.
    pub(crate) fn lost(self, at: Duration, why: &str) -> Vec<News> {
        let Alive(workers) = self;
        let lost = workers.into_values().flat_map(|(worker, running)| {
            let input = running.and_then(|running| running.lost(at, why));
            input.into_iter().chain(worker.lost(at, why))
        });
        lost.collect()
    }
}

#[cfg(test)]
mod tests {
    use pool_core::{Ended, Recycled};

    use super::*;

    const AT: Duration = Duration::from_secs(1);

    fn started(pid: u32) -> News {
        News::worker_started(0, pid, AT).on("there")
    }

    fn recycled(pid: u32) -> News {
        News::worker_recycled(0, pid, Recycled::MaxTasks, AT).on("there")
    }

    fn began(pid: u32) -> News {
        News::input_began(0, pid, "task", Some(7), AT).on("there")
    }

    fn ended(pid: u32) -> News {
        News::input_ended(0, pid, "task", Some(7), Ended::Done, AT, AT).on("there")
    }

    #[test]
    fn what_has_no_end_yet_ends_with_the_node() {
        let mut alive = Alive::default();
        let all = [
            started(1),
            began(1),
            started(2),
            began(2),
            ended(2),
            started(3),
        ];
        for news in all.iter().chain(&[recycled(3), began(4)]) {
            alive.note(news);
        }
        let lost = alive.lost(3 * AT, "it is a test");
        let [News::Event(input), News::Event(first), News::Event(second)] = &lost[..] else {
            panic!("{lost:?}");
        };
        let Event::InputEnded {
            pid: 1,
            host,
            index: Some(7),
            outcome: Ended::WorkerLost,
            took,
            at,
            ..
        } = input
        else {
            panic!("{input:?}");
        };
        assert_eq!(
            (host.as_deref(), *took, *at),
            (Some("there"), 2 * AT, 3 * AT)
        );
        for (event, worker) in [(first, 1), (second, 2)] {
            let Event::WorkerDied { pid, why, .. } = event else {
                panic!("{event:?}");
            };
            assert_eq!((*pid, why.as_deref()), (worker, Some("it is a test")));
        }
    }
}
