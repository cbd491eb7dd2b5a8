//! HTTP, plain or over TLS, without following redirections.

use std::time::Duration;

use reqwest::{Client, Method, redirect};

#[derive(Debug, Clone)]
pub struct Http(Result<Client, String>);

impl Http {
    pub fn new() -> Self {
        // A second call finds one in place already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            // Each try stands for itself: a connection that is kept says nothing about a new one.
            .pool_max_idle_per_host(0)
            .build();
        Self(client.map_err(|error| format!("HTTP cannot be set up: {}", chain(&error))))
    }

    /// Any answer at all: the target is reached.
    pub async fn reach(&self, url: &str, timeout: Duration) -> Result<(), String> {
        self.ask(Method::HEAD, url, timeout).await.map(drop)
    }

    /// An answer with this status.
    pub async fn expect(&self, url: &str, status: u16, timeout: Duration) -> Result<(), String> {
        let found = self.ask(Method::GET, url, timeout).await?;
        if found == status {
            Ok(())
        } else {
            Err(format!("{url} answered {found}, not {status}"))
        }
    }

    async fn ask(&self, method: Method, url: &str, timeout: Duration) -> Result<u16, String> {
        let client = self.0.as_ref().map_err(Clone::clone)?;
        let answer = client.request(method, url).timeout(timeout).send().await;
        match answer {
            Ok(answer) => Ok(answer.status().as_u16()),
            Err(error) => Err(format!("{url} did not answer: {}", chain(&error))),
        }
    }
}

/// The innermost cause: what wraps it only repeats the address.
fn chain(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
