//! A `moto_server` of the test's own: an EC2 that keeps its instances in memory. What a test prepares and
//! looks up goes past the SDK, as plain requests. For tests: whatever goes wrong is a panic.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};

/// Names the installed server; `cargo xtask test aws` sets it.
pub const SERVER_VARIABLE: &str = "MIRROR_MOTO_SERVER";
/// Where its instances are.
pub const REGION: &str = "eu-west-1";

/// Ends with the value.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    address: String,
}

static SHARED: Mutex<Weak<Moto>> = Mutex::new(Weak::new());

impl Moto {
    /// One for all tests that run at this time; it ends with the last of them.
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let moto = Arc::new(Self::start());
            *shared = Arc::downgrade(&moto);
            moto
        })
    }

    /// One for this test alone.
    pub fn start() -> Self {
        let program = program();
        assert!(
            program.exists(),
            "{} is missing; run these tests with `cargo xtask test aws`, which installs it",
            program.display()
        );
        let mut child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut moto = Self {
            child,
            address: String::new(),
        };
        let mut said = String::new();
        while moto.address.is_empty() {
            let at = said.len();
            let count = log.read_line(&mut said).unwrap();
            assert!(count > 0, "moto_server ended: {said}");
            if let Some((_, rest)) = said[at..].split_once("Running on http://") {
                moto.address = rest.split_whitespace().next().unwrap().into();
            }
        }
        // A full pipe would stop it. Ends with the server.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        moto
    }

    /// The endpoint for clients.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ids of two new instances.
    pub fn run_instances(&self) -> [String; 2] {
        let answer = self.ec2("Action=RunInstances&ImageId=ami-12c6146b&MinCount=2&MaxCount=2");
        let ids: Vec<_> = between(&answer, "<instanceId>", "</instanceId>").collect();
        ids.try_into().expect("two instances")
    }

    /// As EC2 names it: `running`, `stopped` …
    pub fn state(&self, instance: &str) -> String {
        let answer = self.ec2(&format!("Action=DescribeInstances&InstanceId.1={instance}"));
        let state = between(&answer, "<instanceState>", "</instanceState>")
            .next()
            .unwrap();
        between(&state, "<name>", "</name>").next().unwrap()
    }

    /// Key and secret of a new user that may do this with everything.
    pub fn add_user(&self, name: &str, actions: Option<&str>) -> (String, String) {
        self.iam(&format!("Action=CreateUser&UserName={name}"));
        if let Some(actions) = actions {
            let policy = format!(
                r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":{actions},"Resource":"*"}}]}}"#
            );
            let policy: String = policy.bytes().map(|byte| format!("%{byte:02X}")).collect();
            self.iam(&format!(
                "Action=PutUserPolicy&UserName={name}&PolicyName=p&PolicyDocument={policy}"
            ));
        }
        let answer = self.iam(&format!("Action=CreateAccessKey&UserName={name}"));
        let one = |from: &'static str, to: &'static str| between(&answer, from, to).next().unwrap();
        (
            one("<AccessKeyId>", "</AccessKeyId>"),
            one("<SecretAccessKey>", "</SecretAccessKey>"),
        )
    }

    /// From now on it looks at signatures and policies.
    pub fn check_signatures(&self) {
        self.post("/moto-api/reset-auth", "content-type: text/plain\r\n", "0");
    }

    /// The answer to a request of EC2's query API.
    pub fn ec2(&self, query: &str) -> String {
        self.query("ec2", &format!("{query}&Version=2016-11-15"))
    }

    fn iam(&self, query: &str) -> String {
        self.query("iam", &format!("{query}&Version=2010-05-08"))
    }

    fn query(&self, service: &str, query: &str) -> String {
        let head = format!(
            "content-type: application/x-www-form-urlencoded\r\n\
             authorization: AWS4-HMAC-SHA256 Credential=test/20260101/{REGION}/{service}/aws4_request, \
             SignedHeaders=host, Signature=0\r\n"
        );
        self.post("/", &head, query)
    }

    fn post(&self, path: &str, head: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{head}content-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{body}: {answer}");
        answer
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> PathBuf {
    std::env::var_os(SERVER_VARIABLE).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin/moto_server"),
        PathBuf::from,
    )
}

fn between<'a>(text: &'a str, from: &'a str, to: &'a str) -> impl Iterator<Item = String> + 'a {
    text.split(from)
        .skip(1)
        .filter_map(move |rest| rest.split_once(to))
        .map(|(found, _)| found.to_owned())
}
