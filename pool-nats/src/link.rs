//! The connection to the server, of a parent and of a node.

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

/// A request that was not answered in this time is asked again.
const ANSWER: Duration = Duration::from_secs(2);

/// The server is asked so often whether it is there, and the connection given up if it has not answered three times: sooner than a
/// node would take that for the parent's silence.
const PING: Duration = Duration::from_secs(3);

/// And JetStream answers in this time.
pub(crate) const JETSTREAM: Duration = Duration::from_secs(5);

/// A connection, and what its user was not allowed to do.
pub(crate) struct Link {
    pub(crate) client: Client,
    /// What the server does not let this user do, in its words.
    pub(crate) denied: UnboundedReceiver<String>,
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum Refused {
    /// There may be one later.
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

/// Connects, with these options or those of the environment.
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
            "{text} (NATS_CA, or the options, say whom to trust; NATS_CERT and NATS_KEY, who this is)"
        )),
        ConnectErrorKind::Io | ConnectErrorKind::TimedOut | ConnectErrorKind::Dns => {
            Refused::Unreachable(text)
        }
        _ => Refused::Wrong(text),
    }
}

/// Whether one side does not like what the other says of itself.
fn is_about_tls(error: &ConnectError) -> bool {
    let sources = iter::successors(error.source(), |error| (**error).source());
    let mut errors = sources.filter_map(|error| error.downcast_ref::<io::Error>());
    errors.any(|error| error.kind() == io::ErrorKind::InvalidData)
}

/// What the variables of the command `nats` say.
fn from_environment(get: impl Fn(&str) -> Option<PathBuf>) -> Result<ConnectOptions, String> {
    let get = |name: &str| get(name).filter(|value| !value.as_os_str().is_empty());
    let text = |name: &str| match get(name).map(|value| value.into_os_string().into_string()) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => Err(format!("{name}: UTF-8 is expected")),
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
        (None, Some(_)) => return Err("NATS_PASSWORD needs NATS_USER beside it".to_owned()),
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
        _ => return Err("of NATS_CERT and NATS_KEY one needs the other".to_owned()),
    }
    if let Some(prefix) = text("NATS_INBOX_PREFIX")? {
        options = options.custom_inbox_prefix(prefix);
    }
    Ok(options)
}

/// How many connections there have been.
pub(crate) fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

/// A sentence about what the server has said of it.
pub(crate) fn not_allowed(url: &Url, said: &str) -> String {
    format!(
        "{}: this user is not allowed what a pool needs: {said}",
        url.server
    )
}

/// Soon at first, and never later than a second.
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
