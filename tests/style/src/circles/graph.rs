//! Strongly connected components of a directed graph.

/// The components of more than one node, each sorted. `edges[n]` lists the successors of `n`.
pub(crate) fn components(edges: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut search = Search {
        edges,
        next: 0,
        order: vec![None; edges.len()],
        low: vec![0; edges.len()],
        stack: Vec::new(),
        found: Vec::new(),
    };
    for node in 0..edges.len() {
        if search.order.get(node) == Some(&None) {
            search.visit(node);
        }
    }
    search.found.sort();
    search.found
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
        assert_eq!(components(&[vec![1], vec![2], vec![]]), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn each_circle_is_one_component() {
        let edges = [vec![1], vec![2], vec![0, 3], vec![4], vec![3], vec![0]];
        assert_eq!(components(&edges), [vec![0, 1, 2], vec![3, 4]]);
    }

    #[test]
    fn two_circles_that_share_a_node_are_one() {
        assert_eq!(components(&[vec![1, 2], vec![0], vec![0]]), [vec![0, 1, 2]]);
    }
}
