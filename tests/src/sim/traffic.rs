//! Messages between the two nodes: how links are made, cut and healed, and what happens to what is on its way.

use mirror_core::units::{Epoch, LinkId, Sequence};
use mirror_core::volume::event::Event;
use mirror_core::wire::frame;
use mirror_core::wire::header::Header;
use mirror_core::wire::message::{Channel, Envelope, Message};

use crate::sim::mutation::Mutation;
use crate::sim::network::{NodeIndex, other};
use crate::sim::node::SimNode;
use crate::sim::world::{Happening, World};

/// Messages that travel as bytes, so that the codecs are met by what volumes really say.
const FRAMED_PERCENT: u64 = 10;

impl World {
    /// What these nodes send is lost until [`World::heal`]. Ends notice within `notice_ms`, or by
    /// their keepalive.
    pub fn cut(&mut self, from: &[NodeIndex], notice_ms: Option<u64>) {
        self.tally.cuts += 1;
        self.trace(|| format!("network: nothing from {from:?} arrives any more"));
        for node in from {
            self.network.unreachable[*node] = true;
            self.network.mute(*node);
        }
        if let Some(notice_ms) = notice_ms {
            for node in [0, 1] {
                if let Some(link) = self.network.current(node) {
                    let delay_us = self.random.below(notice_ms * 1000 + 1);
                    self.schedule(delay_us, Happening::LinkDown { node, link });
                }
            }
        }
    }

    pub fn heal(&mut self) {
        self.trace(|| "network: healed".into());
        self.network.unreachable = [false; 2];
        // A link that lost messages never delivers again: its ends are reset when they speak.
        for node in [0, 1] {
            if (self.network.is_mute(0) || self.network.is_mute(1))
                && let Some(link) = self.network.current(node)
            {
                let delay_us = self.random.between(1_000, 400_000);
                self.schedule(delay_us, Happening::LinkDown { node, link });
            }
        }
        self.look_for_peer();
    }

    pub(super) fn look_for_peer(&mut self) {
        if self.network.can_connect() && !self.network.connecting {
            self.network.connecting = true;
            let delay_us = self.random.between(500, 60_000);
            self.schedule(delay_us, Happening::Connect);
        }
    }

    pub(super) fn connect(&mut self) {
        self.network.connecting = false;
        if !self.network.can_connect() || !self.nodes.iter().all(SimNode::is_up) {
            return;
        }
        let delays = [0, 1].map(|_| self.random.between(10, 2_000));
        let links = self
            .network
            .establish(delays.map(|delay| self.clock_us + delay));
        self.in_transit = 0;
        self.trace(|| format!("network: links {links:?}"));
        for node in [0, 1] {
            let life = self.nodes[node].life;
            let link = links[node];
            self.schedule(delays[node], Happening::LinkUp { node, link, life });
        }
    }

    /// True while what is held back by a test's filter waits.
    pub(super) fn is_held(&self, from: NodeIndex, message: &Message) -> bool {
        self.network
            .hold
            .as_ref()
            .is_some_and(|hold| hold(from, message))
    }

    pub(super) fn transmit(&mut self, from: NodeIndex, link: LinkId, envelope: Envelope) {
        if let Some(cut) = &self.network.cut_at
            && cut(from, &envelope.message)
        {
            self.network.cut_at = None;
            self.cut(&[0, 1], Some(200));
        }
        if self.settings.mutation == Some(Mutation::ClearBitEarly)
            && let Message::ResyncData { sequence, .. } = envelope.message
            && let Some(link) = self.network.current(from)
        {
            self.acknowledge_on(from, link, envelope.epoch, sequence);
            return;
        }
        self.note_handed(from, link, &envelope.message);
        if let Message::Write { sequence, .. } = envelope.message {
            match self.settings.mutation {
                Some(Mutation::DropFromLine) if self.random.percent(8) => return,
                Some(Mutation::AcknowledgedOnSending) => {
                    self.acknowledge_falsely(from, envelope.epoch, sequence);
                }
                _ => {}
            }
        }
        let envelope = if self.random.percent(FRAMED_PERCENT) {
            through_frame(&envelope)
        } else {
            envelope
        };
        let channel = envelope.message.channel();
        let span_us = self.span(self.settings.network_us);
        let arrival_us = self.clock_us + self.slowed(span_us);
        match self.network.send(from, link, channel, arrival_us) {
            Some((link, at_us)) => {
                self.in_transit += 1;
                let to = other(from);
                self.trace(|| format!("{from} → {to}: {}", brief(&envelope.message)));
                let envelope = Box::new(envelope);
                self.schedule_at(at_us, Happening::Deliver { to, link, envelope });
            }
            None => self.trace(|| format!("{from} → lost: {}", brief(&envelope.message))),
        }
    }

    fn acknowledge_falsely(&mut self, to: NodeIndex, epoch: Epoch, sequence: Sequence) {
        if let Some(link) = self.network.current(to) {
            self.acknowledge_on(to, link, epoch, sequence);
        }
    }

    fn acknowledge_on(&mut self, to: NodeIndex, link: LinkId, epoch: Epoch, sequence: Sequence) {
        let message = Message::Ack {
            sequences: vec![sequence],
        };
        let envelope = Box::new(Envelope { epoch, message });
        self.in_transit += 1;
        self.schedule(1_000, Happening::Deliver { to, link, envelope });
    }

    /// Never so slow that the other side is taken for dead.
    fn slowed(&self, span_us: u64) -> u64 {
        let slower = self.settings.link_slower;
        let limit_us = self.settings.peer_timeout_ms * 1000 / 4;
        (span_us * slower).min(limit_us.max(span_us))
    }

    pub(super) fn deliver(&mut self, to: NodeIndex, link: LinkId, envelope: Box<Envelope>) {
        let from = other(to);
        if self.network.is_newest(link) {
            self.in_transit = self.in_transit.saturating_sub(1);
        }
        if !self.network.is_open(to, link) || self.network.unreachable[from] {
            return;
        }
        if self.is_held(from, &envelope.message) {
            // Everything behind it on its channel arrives later too, in order.
            self.in_transit += 1;
            let channel: Channel = envelope.message.channel();
            self.network.postpone(from, channel, self.clock_us + 1_000);
            self.schedule(1_000, Happening::Deliver { to, link, envelope });
            return;
        }
        self.trace(|| format!("{to} gets {}", brief(&envelope.message)));
        self.note_delivery(to, &envelope.message);
        if let Some(sent_on) = self.network.current(from) {
            self.note_arrived(from, sent_on, &envelope.message);
        }
        self.step(
            to,
            Event::Message {
                link,
                envelope: *envelope,
            },
        );
    }
}

/// A message as its receiver decodes it.
pub(super) fn through_frame(envelope: &Envelope) -> Envelope {
    let (head, data) = frame::encode(envelope);
    let (header, inline) = head
        .split_first_chunk()
        .expect("a frame begins with its header");
    let header = Header::decode(header).expect("a header that was just encoded");
    let payload = data.unwrap_or_else(|| inline.to_vec().into());
    frame::decode(&header, payload).expect("a frame that was just encoded")
}

/// A message on one line of the trace.
fn brief(message: &Message) -> String {
    let text = format!("{message:?}");
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
