//! Who reaches whom: each line carries one way, and is cut as often as somebody cuts it.

/// Heartbeat paths of the cluster.
pub const PATHS: usize = 2;

/// One direction of one connection. Nodes are 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Datagrams of a heartbeat path, from this node.
    Beat {
        path: usize,
        from: usize,
    },
    /// The mirror's link, from this node.
    Mirror {
        from: usize,
    },
    /// A node's calls to the witness.
    ToWitness(usize),
    FromWitness(usize),
    /// A node's resolver target, which answers a ping.
    Target(usize),
    /// Another one, which answers over HTTP.
    WebTarget(usize),
    /// A node's way to whoever stops the other one.
    Provider(usize),
}

const LINES: usize = PATHS * 2 + 2 + 2 + 2 + 2 + 2 + 2;

impl Line {
    fn index(self) -> usize {
        match self {
            Self::Beat { path, from } => path * 2 + from,
            Self::Mirror { from } => PATHS * 2 + from,
            Self::ToWitness(node) => PATHS * 2 + 2 + node,
            Self::FromWitness(node) => PATHS * 2 + 4 + node,
            Self::Target(node) => PATHS * 2 + 6 + node,
            Self::Provider(node) => PATHS * 2 + 8 + node,
            Self::WebTarget(node) => PATHS * 2 + 10 + node,
        }
    }

    /// All between the two nodes, both ways.
    pub fn between_nodes() -> Vec<Self> {
        (0..2).flat_map(Self::out_of).collect()
    }

    /// All that one node sends to the other.
    pub fn out_of(from: usize) -> Vec<Self> {
        let mut lines: Vec<Self> = (0..PATHS).map(|path| Self::Beat { path, from }).collect();
        lines.push(Self::Mirror { from });
        lines
    }

    /// One heartbeat path, both ways.
    pub fn path(path: usize) -> Vec<Self> {
        (0..2).map(|from| Self::Beat { path, from }).collect()
    }

    pub fn witness(node: usize) -> Vec<Self> {
        vec![Self::ToWitness(node), Self::FromWitness(node)]
    }

    pub fn targets(node: usize) -> Vec<Self> {
        vec![Self::Target(node), Self::WebTarget(node)]
    }

    /// Everything to and from a node: its cable is out.
    pub fn of_node(node: usize) -> Vec<Self> {
        let mut lines = Self::between_nodes();
        lines.extend(Self::witness(node));
        lines.extend(Self::targets(node));
        lines.push(Self::Provider(node));
        lines
    }
}

#[derive(Debug, Default)]
pub struct Network {
    cuts: [u32; LINES],
    /// Datagrams lost, of 100.
    pub loss_percent: u64,
    /// Datagrams that come twice, of 100.
    pub twice_percent: u64,
    /// Longest delay on top of the usual one.
    pub delay_ms: u64,
    /// With each datagram, of 100: somebody sends one that was recorded earlier, to either node.
    pub again_percent: u64,
}

impl Network {
    pub fn cut(&mut self, lines: &[Line]) {
        for line in lines {
            self.cuts[line.index()] += 1;
        }
    }

    pub fn mend(&mut self, lines: &[Line]) {
        for line in lines {
            let cuts = &mut self.cuts[line.index()];
            *cuts = cuts.saturating_sub(1);
        }
    }

    pub fn mend_all(&mut self) {
        *self = Self::default();
    }

    pub fn passes(&self, line: Line) -> bool {
        self.cuts[line.index()] == 0
    }

    pub fn links_mirrors(&self) -> bool {
        (0..2).all(|from| self.passes(Line::Mirror { from }))
    }
}
