//! The HTTP monitor and the HTTP resolver against a web server that answers, refuses, or says nothing.

mod ground;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent::io::probe::{MonitorProbe, ResolverProbe};
use nbd_frontend::config::agent::{
    FinalAction, Monitor, MonitorKind, Need, Resolver, ResolverKind,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use ground::LIMIT;

/// For a server that does not answer.
const SHORT: Duration = Duration::from_millis(500);

/// A web server on loopback that answers each path with the status that it names. Ends with the test.
struct Web {
    address: SocketAddr,
    /// First lines of what was asked.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Web {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = Self {
            address: listener.local_addr().unwrap(),
            asked: Arc::default(),
        };
        let asked = Arc::clone(&web.asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&asked)));
            }
        });
        web
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

async fn answer(mut stream: TcpStream, asked: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let line = head.lines().next().unwrap_or_default().to_owned();
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    asked.lock().unwrap().push(line);
    let text = match path.as_str() {
        "/silence" => return std::future::pending().await,
        // It begins, and that is all.
        "/halfway" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-").await;
            return std::future::pending().await;
        }
        "/nonsense" => "SSH-2.0-server\r\n\r\n".to_owned(),
        "/moved" => "HTTP/1.1 302 Found\r\nLocation: /200\r\nContent-Length: 0\r\n\r\n".to_owned(),
        path => format!("HTTP/1.1 {} Said\r\nContent-Length: 0\r\n\r\n", &path[1..]),
    };
    let _ = stream.write_all(text.as_bytes()).await;
}

/// An address on loopback at which nobody listens, while the listener lives.
fn refusing() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

async fn monitored(url: String, status: u16, timeout: Duration) -> Result<(), String> {
    let monitor = Monitor {
        name: "web".into(),
        kind: MonitorKind::Http { url, status },
        interval: timeout,
        timeout,
        retries: 0,
        group: None,
        resource: None,
        restarts_max: 0,
        failovers_max: 0,
        final_action: FinalAction::None,
        warn_only: true,
    };
    MonitorProbe::new(&monitor, 0).probe(&[]).await
}

async fn resolved(urls: &[String], need: Need, timeout: Duration) -> Result<(), String> {
    let resolver = Resolver {
        name: "web".into(),
        kind: ResolverKind::Http {
            urls: urls.to_vec(),
            need,
        },
        interval: timeout,
        timeout,
    };
    ResolverProbe::new(&resolver).unwrap().probe().await
}

#[tokio::test]
async fn a_monitor_wants_the_configured_status_and_names_the_one_it_got() {
    let web = Web::start().await;
    assert_eq!(monitored(web.url("200"), 200, LIMIT).await, Ok(()));
    assert_eq!(monitored(web.url("503"), 503, LIMIT).await, Ok(()));
    let asked = web.take_asked();
    assert_eq!(asked, ["GET /200 HTTP/1.1", "GET /503 HTTP/1.1"]);
    for (path, status) in [("500", 500), ("404", 404), ("moved", 302)] {
        let fault = monitored(web.url(path), 200, LIMIT).await.unwrap_err();
        let expected = format!("{} answered {status}, not 200", web.url(path));
        assert_eq!(fault, expected);
    }
    // A redirection is an answer, and is not followed.
    assert_eq!(web.take_asked().len(), 3);
}

#[tokio::test]
async fn a_monitor_gives_up_a_server_that_hangs_refuses_or_speaks_something_else() {
    let web = Web::start().await;
    let begun = Instant::now();
    for path in ["silence", "halfway"] {
        let fault = monitored(web.url(path), 200, SHORT).await.unwrap_err();
        assert!(fault.contains(&web.url(path)), "{fault}");
        assert!(fault.contains("timed out"), "{fault}");
    }
    assert!(begun.elapsed() < LIMIT);
    let (_socket, address) = refusing();
    let url = format!("http://{address}/");
    let fault = monitored(url.clone(), 200, LIMIT).await.unwrap_err();
    assert!(fault.contains(&url) && fault.contains("refused"), "{fault}");
    let fault = monitored(web.url("nonsense"), 200, LIMIT)
        .await
        .unwrap_err();
    assert!(fault.contains("did not answer"), "{fault}");
    assert_eq!(monitored(web.url("200"), 200, LIMIT).await, Ok(()));
}

#[tokio::test]
async fn a_resolver_reaches_whoever_answers_anything_to_its_head_request() {
    let web = Web::start().await;
    for path in ["200", "404", "500", "moved"] {
        let urls = [web.url(path)];
        assert_eq!(resolved(&urls, Need::All, LIMIT).await, Ok(()));
        assert_eq!(web.take_asked(), [format!("HEAD /{path} HTTP/1.1")]);
    }
}

#[tokio::test]
async fn a_resolver_does_not_reach_a_target_that_refuses_or_hangs() {
    let web = Web::start().await;
    let (_socket, address) = refusing();
    let refused = format!("http://{address}/");
    let fault = resolved(std::slice::from_ref(&refused), Need::Any, LIMIT)
        .await
        .unwrap_err();
    assert!(
        fault.contains(&refused) && fault.contains("refused"),
        "{fault}"
    );
    let begun = Instant::now();
    let silent = web.url("silence");
    let fault = resolved(std::slice::from_ref(&silent), Need::Any, SHORT)
        .await
        .unwrap_err();
    assert!(begun.elapsed() < LIMIT);
    assert!(
        fault.contains(&silent) && fault.contains("timed out"),
        "{fault}"
    );
}

#[tokio::test]
async fn of_several_targets_one_is_enough_or_each_must_answer_as_configured() {
    let web = Web::start().await;
    let (_socket, address) = refusing();
    let refused = format!("http://{address}/");
    let one_of_two = [refused.clone(), web.url("200")];
    assert_eq!(resolved(&one_of_two, Need::Any, LIMIT).await, Ok(()));
    let fault = resolved(&one_of_two, Need::All, LIMIT).await.unwrap_err();
    assert!(fault.contains(&refused), "{fault}");
    assert!(!fault.contains("/200"), "{fault}");
    let both = [web.url("200"), web.url("204")];
    assert_eq!(resolved(&both, Need::All, LIMIT).await, Ok(()));
    // With one that hangs, the other's answer is not waited for any longer than itself.
    let begun = Instant::now();
    let hangs = [web.url("silence"), web.url("200")];
    assert_eq!(resolved(&hangs, Need::Any, LIMIT).await, Ok(()));
    assert!(begun.elapsed() < LIMIT);
    let neither = [refused.clone(), web.url("silence")];
    let fault = resolved(&neither, Need::Any, SHORT).await.unwrap_err();
    assert!(
        fault.contains(&refused) && fault.contains("silence"),
        "{fault}"
    );
}
