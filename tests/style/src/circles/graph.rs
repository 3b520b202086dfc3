//! Directed graphs: strongly connected components, and the edges to cut.

use std::collections::BTreeSet;

/// The components of more than one node, each sorted. The edges lead between nodes below `nodes`.
pub(crate) fn components(nodes: usize, edges: &[(usize, usize)]) -> Vec<Vec<usize>> {
    let mut successors = vec![Vec::new(); nodes];
    for (from, to) in edges {
        if let Some(successors) = successors.get_mut(*from) {
            successors.push(*to);
        }
    }
    let mut search = Search {
        edges: &successors,
        next: 0,
        order: vec![None; nodes],
        low: vec![0; nodes],
        stack: Vec::new(),
        found: Vec::new(),
    };
    for node in 0..nodes {
        if search.order.get(node) == Some(&None) {
            search.visit(node);
        }
    }
    search.found.sort();
    search.found
}

/// A small set of edges whose removal leaves no circle among `nodes`. Parallel edges count each.
///
/// Finding the smallest set is NP-hard. This searches for an order of the nodes with few edges from
/// an earlier to a later node, moving one node at a time to its best position; those are the set.
pub(crate) fn cuts(nodes: &[usize], edges: &[(usize, usize)]) -> BTreeSet<(usize, usize)> {
    let backward = |order: &[usize]| -> Vec<(usize, usize)> {
        let position = |node: usize| order.iter().position(|other| *other == node);
        edges.iter().copied().filter(|(from, to)| position(*from) < position(*to)).collect()
    };
    let mut best = nodes.to_vec();
    let mut cost = backward(&best).len();
    loop {
        let before = cost;
        for node in nodes {
            let rest: Vec<_> = best.iter().copied().filter(|other| other != node).collect();
            for at in 0..=rest.len() {
                let mut order = rest.clone();
                order.insert(at, *node);
                let found = backward(&order).len();
                if found < cost {
                    (best, cost) = (order, found);
                }
            }
        }
        if cost == before {
            return backward(&best).into_iter().collect();
        }
    }
}

/// State of Tarjan's algorithm.
struct Search<'a> {
    edges: &'a [Vec<usize>],
    next: usize,
    order: Vec<Option<usize>>,
    low: Vec<usize>,
    stack: Vec<usize>,
    found: Vec<Vec<usize>>,
}

#[expect(clippy::indexing_slicing, reason = "nodes index vectors made for them")]
impl Search<'_> {
    fn visit(&mut self, node: usize) {
        let order = self.next;
        self.next += 1;
        self.order[node] = Some(order);
        self.low[node] = order;
        self.stack.push(node);
        let edges = self.edges;
        for &to in &edges[node] {
            match self.order[to] {
                None => {
                    self.visit(to);
                    self.low[node] = self.low[node].min(self.low[to]);
                }
                Some(order) if self.stack.contains(&to) => {
                    self.low[node] = self.low[node].min(order);
                }
                Some(_) => {}
            }
        }
        if self.low[node] == order {
            let start = self.stack.iter().position(|other| *other == node).unwrap_or(0);
            let mut component = self.stack.split_off(start);
            component.sort_unstable();
            if component.len() > 1 {
                self.found.push(component);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_has_no_component() {
        assert_eq!(components(3, &[(0, 1), (1, 2)]), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn each_circle_is_one_component() {
        let edges = [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 3), (5, 0)];
        assert_eq!(components(6, &edges), [vec![0, 1, 2], vec![3, 4]]);
    }

    #[test]
    fn two_circles_that_share_a_node_are_one() {
        assert_eq!(components(3, &[(0, 1), (0, 2), (1, 0), (2, 0)]), [vec![0, 1, 2]]);
    }

    #[test]
    fn the_fewest_uses_are_cut() {
        let edges = [(0, 1), (0, 1), (1, 2), (2, 0), (2, 0)];
        assert_eq!(cuts(&[0, 1, 2], &edges), BTreeSet::from([(1, 2)]));
    }

    #[test]
    fn cuts_leave_no_component() {
        let edges = [(0, 1), (1, 0), (1, 2), (2, 3), (3, 1), (3, 0), (0, 3)];
        let cuts = cuts(&[0, 1, 2, 3], &edges);
        let rest: Vec<_> = edges.into_iter().filter(|edge| !cuts.contains(edge)).collect();
        assert_eq!(components(4, &rest), Vec::<Vec<usize>>::new());
    }
}
