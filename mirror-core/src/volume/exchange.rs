//! The target's dirty bits and doubts on their way to the source: a page a message, few of them out at
//! a time, so that even a bitmap of 64 MiB takes no memory beside itself.

use super::{Sent, Volume};
use crate::units::{ExtentIndex, LinkId};
use crate::wire::message::Message;

/// Chunks out and not yet acknowledged.
const CHUNKS_OUT_MAX: u32 = 32;
/// Extents in one `DoubtChunk`.
const DOUBT_CHUNK: usize = 1024;

/// What is next to be sent.
#[derive(Debug, Clone, Copy)]
enum Next {
    Page(usize),
    Doubt(ExtentIndex),
    End,
}

#[derive(Debug)]
pub(super) struct Exchange {
    next: Next,
    out: u32,
}

impl Volume {
    /// Sends this side's bits and doubts to the source.
    pub(super) fn send_bitmap(&mut self) {
        self.exchange = Some(Exchange {
            next: Next::Page(0),
            out: 0,
        });
        self.pump_exchange();
    }

    pub(super) fn on_chunk_acknowledged(&mut self) {
        if let Some(exchange) = &mut self.exchange {
            exchange.out -= 1;
            self.pump_exchange();
        }
    }

    fn pump_exchange(&mut self) {
        while let Some(exchange) = self
            .exchange
            .as_ref()
            .filter(|exchange| exchange.out < CHUNKS_OUT_MAX)
        {
            let next = match exchange.next {
                Next::Page(from) => self.send_page(from),
                Next::Doubt(from) => self.send_doubt(from),
                Next::End => {
                    self.exchange = None;
                    self.send(Message::BitmapEnd);
                    return;
                }
            };
            if let Some(exchange) = &mut self.exchange {
                exchange.next = next;
            }
        }
    }

    fn send_page(&mut self, from: usize) -> Next {
        let Some((page, first_block, words)) = self.bitmap.next_dirty_page(from) else {
            return Next::Doubt(ExtentIndex(0));
        };
        let words = words.to_vec();
        let block_shift = self.bitmap.block_shift();
        let sequence = self.send_chunk();
        self.send(Message::BitmapChunk {
            sequence,
            first_block,
            block_shift,
            words,
        });
        Next::Page(page + 1)
    }

    fn send_doubt(&mut self, from: ExtentIndex) -> Next {
        let extents: Vec<u32> = self
            .weak
            .iter_from(from)
            .take(DOUBT_CHUNK)
            .map(|extent| extent.0)
            .collect();
        let Some(last) = extents.last().copied() else {
            return Next::End;
        };
        let sequence = self.send_chunk();
        self.send(Message::DoubtChunk { sequence, extents });
        Next::Doubt(ExtentIndex(last + 1))
    }

    fn send_chunk(&mut self) -> crate::units::Sequence {
        if let Some(exchange) = &mut self.exchange {
            exchange.out += 1;
        }
        self.next_sequence(Sent::Chunk)
    }

    /// The source's side of it: bits are only ever added (D2).
    pub(super) fn on_chunk(&mut self, link: LinkId, message: Message) {
        let sequence = match message {
            Message::BitmapChunk {
                sequence,
                first_block,
                block_shift,
                words,
            } => {
                self.bitmap.merge(first_block, block_shift, &words);
                sequence
            }
            Message::DoubtChunk { sequence, extents } => {
                for extent in extents {
                    self.weak.insert(ExtentIndex(extent));
                }
                sequence
            }
            _ => return,
        };
        self.acknowledge(link, sequence);
    }
}
