//! The replication link between two nodes, as TCP gives it: two channels, each in order, neither
//! ordered with the other; cut in one direction or both between any two messages; and an end that
//! learns of a cut late or through its own keepalive.
//!
//! The network keeps state and says what may happen; the world keeps the time and makes it happen.

use mirror_core::units::LinkId;
use mirror_core::wire::message::{Channel, Message};

/// Which of the two nodes.
pub type NodeIndex = usize;

pub const fn other(node: NodeIndex) -> NodeIndex {
    1 - node
}

/// Tests name the messages they want held back or lost.
pub type Filter = Box<dyn Fn(NodeIndex, &Message) -> bool>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    number: u64,
    /// The node at this end was told of the link and not yet of its end.
    open: [bool; 2],
    /// What this node sends is lost.
    mute: [bool; 2],
    /// Earliest time of the next delivery from this node, by channel.
    busy_until_us: [[u64; 2]; 2],
}

#[derive(Default)]
pub struct Network {
    link: Option<Link>,
    links_made: u64,
    /// What node `i` sends cannot reach the other.
    pub unreachable: [bool; 2],
    pub wanted: [bool; 2],
    /// A connection is being made.
    pub connecting: bool,
    /// Matching messages are lost, and everything after them: the link is cut right there.
    pub cut_at: Option<Filter>,
    /// Matching messages and everything behind them wait until the filter is lifted.
    pub hold: Option<Filter>,
    pub messages: u64,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network")
            .field("link", &self.link)
            .field("unreachable", &self.unreachable)
            .field("wanted", &self.wanted)
            .finish_non_exhaustive()
    }
}

/// Both ends see the same link under different numbers, so that mixing them up shows.
fn id(number: u64, node: NodeIndex) -> LinkId {
    LinkId(number * 2 + node as u64)
}

impl Network {
    pub fn can_connect(&self) -> bool {
        self.wanted == [true; 2] && self.unreachable == [false; 2] && self.is_down()
    }

    /// Both ends know that there is no link.
    pub fn is_down(&self) -> bool {
        self.link.is_none_or(|link| link.open == [false; 2])
    }

    /// Starts a link and gives the name that each end knows it by.
    pub fn establish(&mut self, first_delivery_us: [u64; 2]) -> [LinkId; 2] {
        self.links_made += 1;
        self.link = Some(Link {
            number: self.links_made,
            open: [true; 2],
            mute: [false; 2],
            // What a node sends is delivered after the receiver learned of the link.
            busy_until_us: [[first_delivery_us[1]; 2], [first_delivery_us[0]; 2]],
        });
        [0, 1].map(|node| id(self.links_made, node))
    }

    /// The link that a node would send on.
    pub fn current(&self, node: NodeIndex) -> Option<LinkId> {
        self.link
            .filter(|link| link.open[node])
            .map(|link| id(link.number, node))
    }

    /// A link that was not replaced by a newer one.
    pub fn is_newest(&self, link: LinkId) -> bool {
        link.0 / 2 == self.links_made
    }

    pub fn is_open(&self, node: NodeIndex, link: LinkId) -> bool {
        self.current(node) == Some(link)
    }

    /// Closes one end. True if it was open under that number.
    pub fn close_end(&mut self, node: NodeIndex, link: LinkId) -> bool {
        let open = self.is_open(node, link);
        if let Some(link) = &mut self.link
            && open
        {
            link.open[node] = false;
        }
        open
    }

    /// Everything that this node sends from now on is lost.
    pub fn mute(&mut self, node: NodeIndex) {
        if let Some(link) = &mut self.link {
            link.mute[node] = true;
        }
    }

    pub fn is_mute(&self, node: NodeIndex) -> bool {
        self.link.is_some_and(|link| link.mute[node])
    }

    /// When a message sent now arrives, and at which end; `None` if it is lost.
    pub fn send(
        &mut self,
        from: NodeIndex,
        link: LinkId,
        channel: Channel,
        arrival_us: u64,
    ) -> Option<(LinkId, u64)> {
        if !self.is_open(from, link) || self.is_mute(from) || self.unreachable[from] {
            return None;
        }
        self.messages += 1;
        let link = self.link.as_mut()?;
        let slot = &mut link.busy_until_us[from][channel as usize];
        *slot = arrival_us.max(*slot);
        Some((id(link.number, other(from)), *slot))
    }

    /// A held message is tried again later; everything behind it on its channel stays behind it.
    pub fn postpone(&mut self, from: NodeIndex, channel: Channel, until_us: u64) {
        if let Some(link) = &mut self.link {
            let slot = &mut link.busy_until_us[from][channel as usize];
            *slot = until_us.max(*slot);
        }
    }

    pub fn connected(&self) -> bool {
        self.link
            .is_some_and(|link| link.open == [true; 2] && link.mute == [false; 2])
    }
}
