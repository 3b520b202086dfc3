//! The reads of checks, and their verdicts: a state on which a check would read the same as on an
//! earlier one has its verdict.
//!
//! A check is deterministic: it reads and decides the same if it finds the same. A run is therefore
//! the sequence of blocks that it read, each with what it found, and holds for each state that has
//! all of that. The order of reads need not be the same in each run, as programs read ahead: all
//! branches that a state matches are followed.

use std::collections::HashMap;
use std::io;

/// A block, and the identity of what it had.
pub(crate) type Read = (u64, u128);

/// Most reads that are remembered: some 200 MB. Later runs are made and forgotten.
const READS_MAX: usize = 4_000_000;
/// Reads that take as much memory as the nodes of a run.
const READS_OF_NODE: usize = 10;

/// The place of a run's end in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunEnd(usize);

/// The runs so far, by their common beginnings.
pub(crate) struct RunTree {
    nodes: Vec<Node>,
    reads: usize,
}

#[derive(Default)]
struct Node {
    parent: usize,
    /// Reads that all runs below have in common, after those of the parent.
    reads: Vec<Read>,
    /// The nodes below by their first read.
    below: HashMap<Read, usize>,
    /// The blocks of the keys of `below`.
    blocks: Vec<u64>,
    /// Whether a run that ends here passed.
    passed: Option<bool>,
}

impl Default for RunTree {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], reads: 0 }
    }
}

impl RunTree {
    /// Finds a run that holds for a state, by the identity that each block has in it, and whether
    /// it passed.
    pub(crate) fn find(
        &self,
        mut identity: impl FnMut(u64) -> io::Result<u128>,
    ) -> io::Result<Option<(RunEnd, bool)>> {
        let mut open = vec![0];
        while let Some(at) = open.pop() {
            let Some(node) = self.nodes.get(at) else { continue };
            // The first read was compared on the way here.
            let mut holds = true;
            for (block, found) in node.reads.iter().skip(1) {
                holds = identity(*block)? == *found;
                if !holds {
                    break;
                }
            }
            if !holds {
                continue;
            }
            if let Some(passed) = node.passed {
                return Ok(Some((RunEnd(at), passed)));
            }
            for block in &node.blocks {
                open.extend(node.below.get(&(*block, identity(*block)?)));
            }
        }
        Ok(None)
    }

    /// The blocks that a run read.
    pub(crate) fn blocks(&self, end: RunEnd) -> Vec<u64> {
        let mut blocks = Vec::new();
        let mut at = end.0;
        while let Some(node) = self.nodes.get(at).filter(|_| at != 0) {
            blocks.extend(node.reads.iter().rev().map(|(block, _)| *block));
            at = node.parent;
        }
        blocks.reverse();
        blocks
    }

    /// Remembers a run; `None` if the tree is full.
    pub(crate) fn insert(&mut self, reads: &[Read], passed: bool) -> Option<RunEnd> {
        let mut rest = reads;
        let mut at = 0;
        while let Some(first) = rest.first() {
            let Some(below) = self.nodes.get(at)?.below.get(first).copied() else {
                let reads = self.reads + rest.len() + READS_OF_NODE;
                if reads > READS_MAX {
                    return None;
                }
                self.reads = reads;
                at = self.append(at, rest.to_vec());
                rest = &[];
                break;
            };
            let node = self.nodes.get(below)?;
            let common =
                node.reads.iter().zip(rest).take_while(|(one, other)| one == other).count();
            at = if common < node.reads.len() { self.split(below, common)? } else { below };
            rest = rest.get(common..)?;
        }
        debug_assert!(rest.is_empty());
        self.nodes.get_mut(at)?.passed.get_or_insert(passed);
        Some(RunEnd(at))
    }

    /// Adds a node with `reads`, which are not empty, below another.
    fn append(&mut self, parent: usize, reads: Vec<Read>) -> usize {
        let added = self.nodes.len();
        self.link(parent, &reads, added);
        self.nodes.push(Node { parent, reads, ..Node::default() });
        added
    }

    fn link(&mut self, parent: usize, reads: &[Read], child: usize) {
        let Some((node, first)) = self.nodes.get_mut(parent).zip(reads.first()) else { return };
        if !node.blocks.contains(&first.0) {
            node.blocks.push(first.0);
        }
        node.below.insert(*first, child);
    }

    /// Divides a node after its first `common` reads, at least one, and returns the upper part.
    fn split(&mut self, lower: usize, common: usize) -> Option<usize> {
        let node = self.nodes.get_mut(lower)?;
        let rest = node.reads.split_off(common);
        let (reads, parent) = (std::mem::replace(&mut node.reads, rest.clone()), node.parent);
        let upper = self.append(parent, reads);
        self.nodes.get_mut(lower)?.parent = upper;
        self.link(upper, &rest, lower);
        Some(upper)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(tree: &RunTree, state: &[u128]) -> Option<(RunEnd, bool)> {
        let identity = |block: u64| Ok(state[usize::try_from(block).unwrap()]);
        tree.find(identity).unwrap()
    }

    #[test]
    fn a_run_of_no_reads_holds_for_all() {
        let mut tree = RunTree::default();
        assert_eq!(found(&tree, &[1]), None);
        let end = tree.insert(&[], false).unwrap();
        assert_eq!(found(&tree, &[1]), Some((end, false)));
        assert_eq!(tree.blocks(end), [0; 0]);
    }

    #[test]
    fn runs_that_read_in_another_order_are_found() {
        let mut tree = RunTree::default();
        tree.insert(&[(0, 1), (1, 1), (2, 1)], true);
        let other = tree.insert(&[(1, 2), (0, 1)], false).unwrap();
        let short = tree.insert(&[(0, 1), (2, 7)], true).unwrap();
        assert_eq!(found(&tree, &[1, 2, 9]), Some((other, false)));
        assert_eq!(found(&tree, &[1, 5, 7]), Some((short, true)));
        assert_eq!(found(&tree, &[1, 5, 8]), None);
        assert_eq!(tree.blocks(other), [1, 0]);
    }

    proptest! {
        #[test]
        fn a_run_is_found_if_one_holds(
            runs in proptest::collection::vec(
                proptest::collection::btree_map(0..5u64, 0..3u128, 0..5), 0..12),
            order in any::<u64>(),
            states in proptest::collection::vec(proptest::collection::vec(0..3u128, 5), 20),
        ) {
            let mut tree = RunTree::default();
            for (place, run) in runs.iter().enumerate() {
                let mut reads: Vec<Read> = run.iter().map(|(block, has)| (*block, *has)).collect();
                if order >> place & 1 == 1 {
                    reads.reverse();
                }
                let end = tree.insert(&reads, true).unwrap();
                let blocks: Vec<u64> = reads.iter().map(|(block, _)| *block).collect();
                prop_assert_eq!(tree.blocks(end), blocks);
            }
            for state in states {
                let holds = runs.iter().any(|run| {
                    run.iter().all(|(block, has)| state[usize::try_from(*block).unwrap()] == *has)
                });
                let end = found(&tree, &state);
                prop_assert_eq!(end.is_some(), holds);
            }
        }
    }
}
