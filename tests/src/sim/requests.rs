//! Requests and commands as clients and the operator give them.

use mirror_core::request::{Answer, Operation, Request};
use mirror_core::units::{ByteRange, CommandId, RequestId};
use mirror_core::volume::event::{Command, Event};
use mirror_core::volume::refusal::Refusal;

use crate::sim::client::{Asked, Pending};
use crate::sim::content::{self, ZEROES};
use crate::sim::network::NodeIndex;
use crate::sim::world::{Happening, World};

impl World {
    pub fn submit(&mut self, node: NodeIndex, asked: Asked) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.order += 1;
        let order = self.order;
        let unit_bytes = self.settings.unit_bytes;
        let units = asked.units();
        let range = ByteRange::new(
            units.start * u64::from(unit_bytes),
            ((units.end - units.start) * u64::from(unit_bytes)) as u32,
        );
        let mut tag = ZEROES;
        let operation = match &asked {
            Asked::Read { .. } => Operation::Read,
            Asked::Write { fua, .. } => {
                tag = self.new_tag();
                let tags = vec![tag; (units.end - units.start) as usize];
                Operation::Write {
                    data: content::encode(unit_bytes, &tags),
                    fua: *fua,
                }
            }
            Asked::Trim { fua, .. } => Operation::Trim { fua: *fua },
            Asked::WriteZeroes { fua, no_hole, .. } => Operation::WriteZeroes {
                fua: *fua,
                no_hole: *no_hole,
                fast: false,
            },
            Asked::Flush => Operation::Flush,
        };
        self.trace(|| format!("client → {node}: {id:?} {asked:?} tag {tag:x}"));
        if asked.is_change() {
            let line = self.line[node];
            self.truths[line].submit(id.0, units.clone(), tag, order);
        }
        self.pending.insert(
            id,
            Pending {
                node,
                asked,
                tag,
                submitted: order,
            },
        );
        let request = Request {
            id,
            range,
            operation,
        };
        let life = self.nodes[node].life;
        self.happen(Happening::Arrive {
            node,
            life,
            request,
        });
        self.check_step();
        id
    }

    pub(super) fn new_tag(&mut self) -> content::Tag {
        self.next_tag += 1;
        // Spread over the word, so that no tag is the shear of another.
        self.next_tag | (self.next_tag << 32)
    }

    /// Gives a command and does not wait for its end.
    pub fn give(&mut self, node: NodeIndex, command: Command) -> CommandId {
        self.next_command += 1;
        let id = CommandId(self.next_command);
        self.trace(|| format!("operator → {node}: {id:?} {command:?}"));
        if let Command::Promote {
            peer_down, force, ..
        } = command
            && (peer_down || force)
        {
            self.nodes[node].told_down = true;
        }
        if command == Command::PeerDown {
            self.nodes[node].told_down = true;
        }
        self.outstanding.insert(id, (node, command));
        self.step(node, Event::Command { id, command });
        self.check_step();
        id
    }

    /// Gives a command and waits for its end. `None` if it did not end in time.
    pub fn command(
        &mut self,
        node: NodeIndex,
        command: Command,
    ) -> Option<Result<String, Refusal>> {
        let id = self.give(node, command);
        self.run_until(20_000, |world| world.outcomes.contains_key(&id));
        self.outcomes.remove(&id)
    }

    /// How a given command ended, if it has.
    pub fn outcome(&self, id: CommandId) -> Option<&Result<String, Refusal>> {
        self.outcomes.get(&id)
    }

    /// Waits for the answer to a request.
    pub fn answer_to(&mut self, id: RequestId) -> Option<Answer> {
        self.run_until(20_000, |world| world.answers.contains_key(&id));
        self.answers.get(&id).cloned()
    }

    /// Submits a request and waits for its answer.
    pub fn ask(&mut self, node: NodeIndex, asked: Asked) -> Option<Answer> {
        let id = self.submit(node, asked);
        self.answer_to(id)
    }

    /// The data partition of a node becomes as large as it can.
    pub fn grow(&mut self, node: NodeIndex) {
        self.nodes[node].config.usable_bytes = self.settings.size_bytes + self.settings.room_bytes;
    }

    pub fn keep_answers(&mut self) {
        self.keep_answers = true;
    }
}
