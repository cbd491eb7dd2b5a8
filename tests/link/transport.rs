//! Trusted peers: everything arrives, in order, on plain and on encrypted links.

use std::rc::Rc;

use mirror_core::io::link::connection::Link;
use mirror_core::link::compression::{Compression, Savings};
use mirror_core::units::{ByteRange, Sequence};
use mirror_core::wire::message::Message;

use crate::party::{Party, envelope, noise, run, terms};

async fn linked(encrypted: bool) -> (Party, Rc<Link>, Party, Rc<Link>) {
    let (mut acceptor, address) = Party::acceptor(terms(1, encrypted));
    let mut connector = Party::connector(terms(1, encrypted), address);
    let (here, there) = tokio::join!(connector.link(), acceptor.link());
    (connector, here, acceptor, there)
}

fn write(number: u64, length: u32) -> Message {
    Message::Write {
        sequence: Sequence(number),
        depends_on: Sequence(0),
        range: ByteRange::new(0, length),
        fua: false,
        data: (0..length)
            .map(|i| (i as u64 * 31 + number) as u8)
            .collect::<Vec<u8>>()
            .into(),
    }
}

/// A write of data that does not shrink.
fn write_noise(number: u64, length: u32) -> Message {
    let mut message = write(number, length);
    if let Message::Write { data, .. } = &mut message {
        *data = noise(number, length as usize).into();
    }
    message
}

/// Payload of every size class that shrinks, among some that does not, and one that is never tried.
fn everything_arrives_compressed(encrypted: bool) {
    run(async move {
        let (connector, here, acceptor, _there) = linked(encrypted).await;
        here.compress(Compression::Data);
        let sizes = [1, 1023, 1024, 4096, 65_535, 65_536, 300_000, 1 << 20];
        let writes: Vec<Message> = (0..48)
            .map(|number| match number % 5 {
                3 => write_noise(number, 4096),
                _ => write(number, sizes[number as usize % sizes.len()]),
            })
            .collect();
        for message in &writes {
            here.send(envelope(message.clone()));
        }
        assert_eq!(acceptor.seen.messages(writes.len()).await, writes);
        let before: u64 = writes
            .iter()
            .map(|message| match message {
                Message::Write { data, .. } => data.len() as u64,
                _ => 0,
            })
            .sum();
        let savings = connector.traffic.savings.get();
        assert_eq!(savings.before_bytes, before);
        assert!(savings.after_bytes < before / 4, "{savings:?}");
        let sent = connector.traffic.sent.get();
        assert!(
            (savings.after_bytes..before / 4).contains(&sent),
            "{sent} for {savings:?}"
        );
        assert_eq!(acceptor.traffic.savings.get(), Savings::default());
    });
}

#[test]
fn everything_arrives_compressed_on_a_plain_link() {
    everything_arrives_compressed(false);
}

#[test]
fn everything_arrives_compressed_on_an_encrypted_link() {
    everything_arrives_compressed(true);
}

/// Payload of every size class, small frames between bulk ones, and both channels at once.
fn everything_arrives(encrypted: bool) {
    run(async move {
        let (connector, here, acceptor, there) = linked(encrypted).await;
        // Whoever keeps what it hears keeps the pool's memory: less than that in all.
        let sizes = [
            1,
            512,
            1024,
            1025,
            4096,
            65_536,
            65_600,
            1 << 20,
            512,
            1 << 20,
        ];
        let writes: Vec<Message> = (0..60)
            .map(|number| write(number, sizes[number as usize % sizes.len()]))
            .collect();
        for message in &writes {
            here.send(envelope(message.clone()));
        }
        assert_eq!(acceptor.seen.messages(writes.len()).await, writes);

        let flush = Message::Flush {
            sequence: Sequence(9),
        };
        let ping = Message::Ping { stamp_ms: 5 };
        there.send(envelope(flush.clone()));
        there.send(envelope(ping.clone()));
        let heard = connector.seen.messages(2).await;
        assert!(heard.contains(&flush) && heard.contains(&ping), "{heard:?}");

        let sent: u64 = writes
            .iter()
            .map(|message| match message {
                Message::Write { data, .. } => 64 + data.len() as u64,
                _ => 0,
            })
            .sum();
        assert!(connector.traffic.sent.get() >= sent);
        assert!(acceptor.traffic.received.get() >= sent);
    });
}

#[test]
fn everything_arrives_in_order_on_a_plain_link() {
    everything_arrives(false);
}

#[test]
fn everything_arrives_in_order_on_an_encrypted_link() {
    everything_arrives(true);
}

#[test]
fn the_last_words_before_a_close_arrive() {
    for encrypted in [false, true] {
        run(async move {
            let (_connector, here, acceptor, _there) = linked(encrypted).await;
            let goodbye = Message::Goodbye { clean: true };
            here.send(envelope(goodbye.clone()));
            here.close();
            acceptor.seen.down().await;
            assert_eq!(*acceptor.seen.messages.borrow(), [goodbye]);
        });
    }
}

#[test]
fn a_lost_link_is_made_again() {
    run(async {
        let (mut connector, here, mut acceptor, there) = linked(true).await;
        there.close();
        connector.seen.down().await;
        drop((here, there));
        connector.wanted.mark_unlinked();
        let (here, _there) = tokio::join!(connector.link(), acceptor.link());
        let ping = Message::Ping { stamp_ms: 6 };
        here.send(envelope(ping.clone()));
        assert_eq!(acceptor.seen.messages(1).await, [ping]);
    });
}

#[test]
fn nobody_is_heard_while_no_link_is_wanted() {
    run(async {
        let (mut acceptor, address) = Party::acceptor(terms(1, false));
        acceptor.wanted.set(false);
        let mut connector = Party::connector(terms(1, false), address);
        connector.seen.refused("").await;
        acceptor.wanted.set(true);
        tokio::join!(connector.link(), acceptor.link());
    });
}
