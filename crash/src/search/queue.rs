//! The states that wait, in the order in which they are explored. Pure.
//!
//! First each power cut with nothing lost, with all open writes lost and with random ones lost;
//! then the states that lose one write, one torn write, two writes and so on; random ones last.
//! Only states that were explored wait, each for its further losses to be found by what its check
//! read: those that follow from one of them are made together.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::runs::Run;
use crate::losses::{Loss, Losses};
use crate::name::StateName;

/// Most states that wait: some 100 MB.
const WAITING_MAX: usize = 500_000;
/// Most states that are remembered as explored, so as not to explore one twice: some 200 MB.
const SEEN_MAX: usize = 4_000_000;

/// An explored state whose further losses are not explored yet.
pub(crate) struct Explored {
    pub(crate) state: StateName,
    pub(crate) run: Run,
    /// Further writes are torn.
    pub(crate) torn: bool,
}

/// Work for one thread.
pub(crate) enum Task {
    /// A state.
    State(StateName),
    /// The further losses of a state.
    Extend(Explored),
    /// A random state of a power cut.
    SampleAt(u64),
    /// A random state.
    Sample(u64),
}

/// The states that wait.
pub(crate) struct Queue {
    points: std::vec::IntoIter<u64>,
    /// Further states of the power cut that was taken last.
    of_point: VecDeque<Task>,
    /// Neither all open writes are lost at once, nor is a state explored twice: levels mix.
    exhaustive: bool,
    ready: VecDeque<StateName>,
    waiting: BTreeMap<usize, VecDeque<Explored>>,
    waiting_count: usize,
    level: usize,
    seen: HashSet<u128>,
    samples: std::ops::Range<u64>,
    /// Tasks that were taken, and are not done.
    working: usize,
    /// States were left out, as too many waited.
    pub(crate) overflown: bool,
    /// Power cuts that were taken.
    pub(crate) points_taken: u64,
}

/// The next step of a thread.
pub(crate) enum Next {
    /// A task.
    Take(Task),
    /// It waits for others, whose tasks may lead to more.
    Wait,
    /// Nothing is left.
    Done,
}

/// The place of a state among others: by the writes that it lost, then whether one is torn.
pub(crate) fn level(losses: &Losses) -> usize {
    let Losses::These(these) = losses else { return 0 };
    let torn = these.values().any(|loss| matches!(loss, Loss::Sectors(_)));
    these.len() * 2 + usize::from(torn)
}

impl Queue {
    pub(crate) fn new(points: Vec<u64>, exhaustive: bool, samples: u64) -> Self {
        Self {
            points: points.into_iter(),
            of_point: VecDeque::new(),
            exhaustive,
            ready: VecDeque::new(),
            waiting: BTreeMap::new(),
            waiting_count: 0,
            level: 0,
            seen: HashSet::new(),
            samples: 0..samples,
            working: 0,
            overflown: false,
            points_taken: 0,
        }
    }

    /// The next task, which the caller reports with [`Queue::done`].
    pub(crate) fn take(&mut self) -> Next {
        match self.task() {
            Some(task) => {
                self.working += 1;
                Next::Take(task)
            }
            None if self.working > 0 => Next::Wait,
            None => Next::Done,
        }
    }

    fn task(&mut self) -> Option<Task> {
        if let Some(state) = self.ready.pop_front() {
            return Some(Task::State(state));
        }
        if let Some(task) = self.of_point.pop_front() {
            return Some(task);
        }
        if let Some(point) = self.points.next() {
            self.points_taken += 1;
            if !self.exhaustive {
                let all = StateName { point, losses: Losses::All, discards: false };
                self.of_point.push_back(Task::State(all));
                self.of_point.extend((self.samples.end > 0).then_some(Task::SampleAt(point)));
            }
            let losses = Losses::none();
            return Some(Task::State(StateName { point, losses, discards: false }));
        }
        while let Some(mut first) = self.waiting.first_entry() {
            if let Some(explored) = first.get_mut().pop_front() {
                if self.level != *first.key() {
                    self.level = *first.key();
                    if !self.exhaustive {
                        self.seen = HashSet::new();
                    }
                }
                self.waiting_count -= 1;
                return Some(Task::Extend(explored));
            }
            first.remove();
        }
        if self.working > 0 {
            return None;
        }
        self.samples.next().map(Task::Sample)
    }

    /// A task was done, and leads to states, and to further losses of explored ones.
    pub(crate) fn done(&mut self, states: Vec<StateName>, explored: Vec<Explored>) {
        self.working -= 1;
        for state in states {
            if self.seen.len() >= SEEN_MAX || self.seen.insert(identity(&state)) {
                self.ready.push_back(state);
            }
        }
        for next in explored {
            if self.waiting_count >= WAITING_MAX {
                self.overflown = true;
                return;
            }
            self.waiting_count += 1;
            let before = level(&next.state.losses);
            let of_next = (before / 2 + 1) * 2 + usize::from(next.torn || before % 2 == 1);
            self.waiting.entry(of_next).or_default().push_back(next);
        }
    }

    /// States that wait, as far as they are known.
    pub(crate) fn waiting(&self) -> u64 {
        let known = self.ready.len() + self.points.len() + self.waiting_count;
        (known as u64).saturating_add(self.samples.end - self.samples.start)
    }

    /// The writes that the states lose at most which are explored; `None` for random states.
    pub(crate) fn stage(&self) -> Option<usize> {
        let samples = self.waiting_count == 0 && self.ready.is_empty() && self.samples.start > 0;
        (!samples).then_some(self.level / 2)
    }
}

fn identity(state: &StateName) -> u128 {
    let half = |key: u8| {
        let mut hasher = DefaultHasher::new();
        (key, state).hash(&mut hasher);
        hasher.finish()
    };
    u128::from(half(1)) << 64 | u128::from(half(2))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn next(queue: &mut Queue) -> String {
        match queue.take() {
            Next::Take(Task::State(state)) => state.to_string(),
            Next::Take(Task::Extend(Explored { state, torn, .. })) => {
                format!("extend {state}{}", if torn { " torn" } else { "" })
            }
            Next::Take(Task::SampleAt(point)) => format!("sample of {point}"),
            Next::Take(Task::Sample(number)) => format!("sample {number}"),
            Next::Wait => "wait".to_string(),
            Next::Done => "done".to_string(),
        }
    }

    fn explored(name: &str, torn: bool) -> Explored {
        Explored { state: name.parse().unwrap(), run: Run::Blocks(Arc::new([])), torn }
    }

    #[test]
    fn states_come_by_their_losses() {
        let mut queue = Queue::new(vec![7, 3], false, 1);
        assert_eq!(next(&mut queue), "7");
        queue.done(vec![], vec![explored("7", true), explored("7", false)]);
        for name in ["7-all", "sample of 7", "3", "3-all", "sample of 3", "extend 7"] {
            assert_eq!(next(&mut queue), name);
        }
        let lost = ["7-1", "7-2", "7-1"].map(|name| name.parse().unwrap());
        queue.done(lost.to_vec(), vec![]);
        assert_eq!(next(&mut queue), "7-1");
        queue.done(vec![], vec![explored("7-1", false), explored("7-1", true)]);
        for name in ["7-2", "extend 7 torn", "extend 7-1", "extend 7-1 torn", "wait"] {
            assert_eq!(next(&mut queue), name);
        }
        // A sample waits until all others are done.
        while queue.working > 0 {
            queue.done(vec![], vec![]);
        }
        assert_eq!(next(&mut queue), "sample 0");
        queue.done(vec![], vec![]);
        assert_eq!(next(&mut queue), "done");
        assert!(!queue.overflown && queue.points_taken == 2);
    }

    #[test]
    fn too_many_states_are_left_out_and_reported() {
        let mut queue = Queue::new(vec![7], true, 0);
        assert_eq!(next(&mut queue), "7");
        let all = (0..=WAITING_MAX).map(|_| explored("7", false)).collect();
        queue.done(vec![], all);
        assert!(queue.overflown && queue.waiting() == WAITING_MAX as u64);
    }
}
