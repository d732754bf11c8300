//! The connection of a parent or a node to the server.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::{io, iter};

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerError};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use crate::Url;

/// How long to wait for the answer to a request.
const ANSWER: Duration = Duration::from_secs(2);

/// How often the server is pinged. The connection is closed after three pings without an answer: sooner than a node
/// would take the silence for the parent's death.
const PING: Duration = Duration::from_secs(3);

/// How long to wait for an answer of JetStream.
pub(crate) const JETSTREAM: Duration = Duration::from_secs(5);

/// A connection, and the permissions that its user turned out to lack.
pub(crate) struct Link {
    pub(crate) client: Client,
    /// What the server has denied this user, in its words.
    pub(crate) denied: UnboundedReceiver<String>,
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The server can't be reached now; it may be later.
    Unreachable(String),
    Wrong(String),
}

impl Refused {
    pub(crate) fn into_text(self) -> String {
        match self {
            Refused::Unreachable(text) | Refused::Wrong(text) => text,
        }
    }
}

/// Connects, with these options or with those from the environment.
pub(crate) async fn connect(
    url: &Url,
    options: Option<ConnectOptions>,
    name: &str,
) -> Result<Link, Refused> {
    let options = match options {
        Some(options) => options,
        None => {
            from_environment(|name| env::var_os(name).map(PathBuf::from)).map_err(Refused::Wrong)?
        }
    };
    let (tell, denied) = mpsc::unbounded_channel();
    let connected = url
        .options(options)
        .name(name)
        .reconnect_delay_callback(reconnect_delay)
        .request_timeout(Some(ANSWER))
        .ping_interval(PING)
        .event_callback(move |event| {
            if let Event::ServerError(ServerError::Other(text)) = &event
                && text.to_lowercase().contains("permissions violation")
            {
                let _ = tell.send(text.clone());
            }
            tracing::debug!(%event, "the connection to the NATS server");
            async {}
        })
        .connect(&url.server)
        .await;
    match connected {
        Ok(client) => Ok(Link { client, denied }),
        Err(error) => Err(sort(&error, &url.server)),
    }
}

fn sort(error: &ConnectError, server: &str) -> Refused {
    let text = format!("{server}: {error}");
    match error.kind() {
        ConnectErrorKind::Io if is_about_tls(error) => Refused::Wrong(format!(
            "{text} (NATS_CA, or the options, set whom to trust; NATS_CERT and NATS_KEY set this client's certificate)"
        )),
        ConnectErrorKind::Io | ConnectErrorKind::TimedOut | ConnectErrorKind::Dns => {
            Refused::Unreachable(text)
        }
        _ => Refused::Wrong(text),
    }
}

/// Whether the TLS handshake failed because one side rejected the other.
fn is_about_tls(error: &ConnectError) -> bool {
    let sources = iter::successors(error.source(), |error| (**error).source());
    let mut errors = sources.filter_map(|error| error.downcast_ref::<io::Error>());
    errors.any(|error| error.kind() == io::ErrorKind::InvalidData)
}

/// Reads the environment variables of the `nats` command-line tool.
fn from_environment(get: impl Fn(&str) -> Option<PathBuf>) -> Result<ConnectOptions, String> {
    let get = |name: &str| get(name).filter(|value| !value.as_os_str().is_empty());
    let text = |name: &str| match get(name).map(|value| value.into_os_string().into_string()) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => Err(format!("{name} is not valid UTF-8")),
    };
    let read = |name: &str| match get(name) {
        None => Ok(None),
        Some(file) => fs::read_to_string(&file)
            .map(Some)
            .map_err(|error| format!("{name}={}: {error}", file.display())),
    };
    let mut options = ConnectOptions::new();
    match (text("NATS_USER")?, text("NATS_PASSWORD")?) {
        (Some(user), password) => {
            options = options.user_and_password(user, password.unwrap_or_default());
        }
        (None, Some(_)) => return Err("NATS_PASSWORD is set without NATS_USER".to_owned()),
        (None, None) => {}
    }
    if let Some(token) = text("NATS_TOKEN")? {
        options = options.token(token);
    }
    if let Some(seed) = read("NATS_NKEY")? {
        options = options.nkey(seed.trim().to_owned());
    }
    if let Some(credentials) = read("NATS_CREDS")? {
        options = options
            .credentials(&credentials)
            .map_err(|error| format!("NATS_CREDS: {error}"))?;
    }
    if let Some(file) = get("NATS_CA") {
        options = options.add_root_certificates(file);
    }
    match (get("NATS_CERT"), get("NATS_KEY")) {
        (Some(certificate), Some(key)) => {
            options = options.add_client_certificate(certificate, key);
        }
        (None, None) => {}
        _ => return Err("NATS_CERT and NATS_KEY must be set together".to_owned()),
    }
    if let Some(prefix) = text("NATS_INBOX_PREFIX")? {
        options = options.custom_inbox_prefix(prefix);
    }
    Ok(options)
}

/// Returns how many times the client has connected.
pub(crate) fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

/// Returns an error message about a denied permission.
pub(crate) fn not_allowed(url: &Url, said: &str) -> String {
    format!(
        "{}: the server denied this user a permission that a pool needs: {said}",
        url.server
    )
}

/// Returns the delay before an attempt to reconnect: short at first, a second at most.
fn reconnect_delay(attempts: usize) -> Duration {
    Duration::from_millis(20)
        .saturating_mul(1 << attempts.min(6))
        .min(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> Result<ConnectOptions, String> {
        from_environment(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| PathBuf::from(value))
        })
    }

    #[test]
    fn what_the_environment_says_is_checked() {
        assert!(options(&[]).is_ok());
        assert!(options(&[("NATS_USER", "me"), ("NATS_PASSWORD", "secret")]).is_ok());
        assert!(options(&[("NATS_USER", ""), ("NATS_CERT", "")]).is_ok());
        let why = |variables: &[_]| options(variables).err().unwrap_or_default();
        assert!(why(&[("NATS_PASSWORD", "secret")]).contains("NATS_USER"));
        assert!(why(&[("NATS_CERT", "a.pem")]).contains("NATS_KEY"));
        let text = why(&[("NATS_CREDS", "/there/is/none")]);
        assert!(text.contains("NATS_CREDS=/there/is/none"), "{text}");
        let directory = std::env::temp_dir();
        let text = why(&[("NATS_NKEY", &directory.to_string_lossy())]);
        assert!(text.contains("NATS_NKEY"), "{text}");
    }
}
