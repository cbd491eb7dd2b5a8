//! One end of a link for tests: collects what happens on it, and waits for it with a limit.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use mirror_core::io::buffers::BufferPool;
use mirror_core::io::link::connect::Connector;
use mirror_core::io::link::connection::{Handler, Link, Traffic};
use mirror_core::io::link::error::LinkError;
use mirror_core::io::link::handshake::Credentials;
use mirror_core::io::link::listen::Listener;
use mirror_core::io::link::{Pair, Wanted};
use mirror_core::io::ring::Runtime;
use mirror_core::link::preface::{ClusterKey, Terms};
use mirror_core::units::{Epoch, LinkId, Uuid};
use mirror_core::wire::message::{Envelope, Message};
use mirror_tests::random::Random;
use tokio::sync::{Notify, mpsc};

/// Everything here happens within moments; this only ends a test that hangs.
const LIMIT: Duration = Duration::from_secs(30);

pub fn run<F: Future<Output = ()>>(test: F) {
    Runtime::new().expect("io_uring").block_on(async {
        tokio::time::timeout(LIMIT, test)
            .await
            .expect("the test did not end in time");
    });
}

pub fn terms(secret: u8, encrypted: bool) -> Terms {
    Terms {
        key: ClusterKey::new(&[secret; 32]).unwrap(),
        mirror: Uuid::from_name("mirror", "md1"),
        encrypted,
    }
}

/// Bytes in which nothing is found to compress.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..length).map(|_| random.below(256) as u8).collect()
}

pub fn envelope(message: Message) -> Envelope {
    Envelope {
        epoch: Epoch(1),
        message,
    }
}

/// What one end of a link saw.
#[derive(Default)]
pub struct Seen {
    pub messages: RefCell<Vec<Message>>,
    pub down: RefCell<Option<String>>,
    pub refused: RefCell<Vec<String>>,
    changed: Notify,
}

impl Seen {
    pub async fn wait<T>(&self, look: impl Fn(&Self) -> Option<T>) -> T {
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            self.changed.notified().await;
        }
    }

    pub async fn messages(&self, count: usize) -> Vec<Message> {
        self.wait(|seen| (seen.messages.borrow().len() >= count).then_some(()))
            .await;
        self.messages.borrow().clone()
    }

    pub async fn refused(&self, words: &str) {
        self.wait(|seen| {
            let refused = seen.refused.borrow();
            refused
                .iter()
                .any(|reason| reason.contains(words))
                .then_some(())
        })
        .await;
    }

    pub async fn down(&self) -> String {
        self.wait(|seen| seen.down.borrow().clone()).await
    }
}

struct Collector(Rc<Seen>);

impl Handler for Collector {
    fn message(&self, _link: LinkId, envelope: Envelope) {
        self.0.messages.borrow_mut().push(envelope.message);
        self.0.changed.notify_one();
    }

    fn down(&self, _link: LinkId, reason: LinkError) {
        *self.0.down.borrow_mut() = Some(reason.to_string());
        self.0.changed.notify_one();
    }
}

/// One end: makes links and starts them.
pub struct Party {
    pub seen: Rc<Seen>,
    pub wanted: Wanted,
    pub traffic: Traffic,
    pub pool: BufferPool,
    pairs: mpsc::Receiver<Pair>,
    maker: tokio::task::JoinHandle<()>,
}

impl Drop for Party {
    fn drop(&mut self) {
        self.maker.abort();
    }
}

impl Party {
    /// An acceptor on a free port, and its address.
    pub fn acceptor(terms: Terms) -> (Self, SocketAddr) {
        let mut address = None;
        let party = Self::new(|wanted, pairs, refused| {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let credentials = Credentials::new(terms).unwrap();
            let listener = Listener::bind(any, any, credentials, wanted, pairs, refused).unwrap();
            address = Some(listener.local_address().unwrap());
            tokio::task::spawn_local(listener.run())
        });
        (party, address.unwrap())
    }

    pub fn connector(terms: Terms, peer: SocketAddr) -> Self {
        Self::new(|wanted, pairs, refused| {
            let connector = Connector {
                peer,
                credentials: Credentials::new(terms).unwrap(),
                wanted,
                pairs,
                refused,
            };
            tokio::task::spawn_local(connector.run())
        })
    }

    fn new(
        start: impl FnOnce(
            Wanted,
            mpsc::Sender<Pair>,
            Rc<dyn Fn(&LinkError)>,
        ) -> tokio::task::JoinHandle<()>,
    ) -> Self {
        let seen: Rc<Seen> = Rc::default();
        let wanted = Wanted::default();
        wanted.set(true);
        let (sender, pairs) = mpsc::channel(4);
        let told = Rc::clone(&seen);
        let refused: Rc<dyn Fn(&LinkError)> = Rc::new(move |error: &LinkError| {
            told.refused.borrow_mut().push(error.to_string());
            told.changed.notify_one();
        });
        Self {
            maker: start(wanted.clone(), sender, refused),
            seen,
            wanted,
            traffic: Traffic::default(),
            pool: BufferPool::new(32 << 20).unwrap(),
            pairs,
        }
    }

    /// Waits for a link and starts it.
    pub async fn link(&mut self) -> Rc<Link> {
        let pair = self.pairs.recv().await.unwrap();
        let handler = Rc::new(Collector(Rc::clone(&self.seen)));
        Link::start(LinkId(1), pair, &self.pool, &self.traffic, handler)
    }
}
