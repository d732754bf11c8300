//! Callsites of workers in this process: `tracing` needs them to live as long as the process.
//!
//! Workers are the same program, so they have no more callsites than the program; but a worker may write anything, so only a
//! limited number is accepted.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, Once, OnceLock};

use pool_worker::LogLevel;
use pool_worker::record::{Callsite, FIELDS_MAX};
use tracing_core::callsite;
use tracing_core::dispatcher::{self, Dispatch};
use tracing_core::field::{Field, FieldSet};
use tracing_core::metadata::Kind;
use tracing_core::subscriber::Interest;
use tracing_core::{Level, LevelFilter, Metadata, identify_callsite};

use crate::sync::lock;

/// The number of callsites that are distinguished. For further ones, only the level and the message are passed on.
const SITES_MAX: usize = 8192;

/// The fields that all spans and events of workers have in addition to their own.
const OURS: [&str; 5] = ["worker", "pid", "host", "task", "input"];

/// The names of these fields if a callsite has a field of the same name.
const OURS_QUALIFIED: [&str; 5] = [
    "pool.worker",
    "pool.pid",
    "pool.host",
    "pool.task",
    "pool.input",
];

const MESSAGE: &str = "message";

/// A callsite.
pub(super) struct Site {
    metadata: OnceLock<Metadata<'static>>,
    fields: OnceLock<Vec<Field>>,
    /// How many fields it has of its own; the added ones follow.
    own: usize,
    /// The names of all fields.
    names: Vec<&'static str>,
    /// It stands for all callsites beyond the limit.
    pub(super) is_any: bool,
    registered: Once,
    interest: AtomicU8,
}

mod interest {
    pub(super) const NEVER: u8 = 0;
    pub(super) const PERHAPS: u8 = 1;
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").finish_non_exhaustive()
    }
}

impl callsite::Callsite for Site {
    fn set_interest(&self, interest: Interest) {
        let interest = if interest.is_never() {
            interest::NEVER
        } else {
            interest::PERHAPS
        };
        self.interest.store(interest, Ordering::Relaxed);
    }

    fn metadata(&self) -> &Metadata<'_> {
        self.metadata
            .get()
            .expect("it is set before this is handed out")
    }
}

impl Site {
    pub(super) fn metadata(&'static self) -> &'static Metadata<'static> {
        self.metadata
            .get()
            .expect("it is set before this is handed out")
    }

    /// Its own fields, followed by the added ones.
    pub(super) fn fields(&self) -> &[Field] {
        self.fields.get().map_or(&[], |fields| fields)
    }

    /// How many fields it has of its own.
    pub(super) fn own(&self) -> usize {
        self.own
    }

    /// The names of all fields.
    #[cfg(test)]
    fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// Whether this subscriber wants records from here. Runs code of users.
    pub(super) fn is_wanted(&'static self, dispatch: &Dispatch) -> bool {
        // If there is only one subscriber, `tracing` asks that of this thread.
        let register = || dispatcher::with_default(dispatch, || callsite::register(self));
        // A subscriber that panicked here is asked again.
        self.registered.call_once_force(|_| register());
        let metadata = self.metadata();
        *metadata.level() <= LevelFilter::current()
            && self.interest.load(Ordering::Relaxed) != interest::NEVER
            && dispatch.enabled(metadata)
    }
}

/// The callsite in this process that matches a worker's description.
pub(super) fn find(callsite: &Callsite<'_>) -> &'static Site {
    static SITES: Mutex<Option<Sites>> = Mutex::new(None);
    let mut sites = lock(&SITES);
    sites.get_or_insert_default().find(callsite)
}

#[derive(Default)]
struct Sites {
    known: HashMap<Callsite<'static>, &'static Site>,
    /// The callsites that stand for all others, by whether they are spans, and by level.
    any: HashMap<(bool, LogLevel), &'static Site>,
}

impl Sites {
    fn find(&mut self, callsite: &Callsite<'_>) -> &'static Site {
        // A map that is only read may be treated as one of shorter lifetimes.
        let known: &HashMap<Callsite<'_>, &'static Site> = &self.known;
        if let Some(site) = known.get(callsite) {
            return site;
        }
        if self.known.len() >= SITES_MAX {
            let any = (callsite.is_span, callsite.level);
            return self.any.entry(any).or_insert_with(|| {
                let callsite = Callsite {
                    is_span: callsite.is_span,
                    level: callsite.level,
                    name: "any other".into(),
                    target: "pool_core".into(),
                    module: None,
                    file: None,
                    line: None,
                    fields: vec![MESSAGE.into()],
                };
                make(&callsite, true)
            });
        }
        let callsite = keep(callsite);
        let site = make(&callsite, false);
        self.known.insert(callsite, site);
        site
    }
}

/// Makes a copy that lives as long as the process.
fn keep(callsite: &Callsite<'_>) -> Callsite<'static> {
    let keep = |text: &Cow<'_, str>| -> Cow<'static, str> { keep_text(text).into() };
    Callsite {
        is_span: callsite.is_span,
        level: callsite.level,
        name: keep(&callsite.name),
        target: keep(&callsite.target),
        module: callsite.module.as_ref().map(keep),
        file: callsite.file.as_ref().map(keep),
        line: callsite.line,
        fields: callsite.fields.iter().map(keep).collect(),
    }
}

fn keep_text(text: &str) -> &'static str {
    Box::leak(text.into())
}

#[expect(clippy::ptr_arg, reason = "borrowed values live forever")]
fn borrowed(text: &Cow<'static, str>) -> &'static str {
    match text {
        Cow::Borrowed(text) => text,
        Cow::Owned(text) => keep_text(text),
    }
}

fn make(callsite: &Callsite<'static>, is_any: bool) -> &'static Site {
    let own = callsite.fields.len().min(FIELDS_MAX - OURS.len());
    let mut names: Vec<&'static str> = callsite.fields[..own].iter().map(borrowed).collect();
    for (plain, qualified) in OURS.into_iter().zip(OURS_QUALIFIED) {
        let is_taken = names[..own].contains(&plain);
        names.push(if is_taken { qualified } else { plain });
    }
    let site: &'static Site = Box::leak(Box::new(Site {
        metadata: OnceLock::new(),
        fields: OnceLock::new(),
        own,
        names,
        is_any,
        registered: Once::new(),
        interest: AtomicU8::new(interest::PERHAPS),
    }));
    let metadata = Metadata::new(
        borrowed(&callsite.name),
        borrowed(&callsite.target),
        LevelFilter::from(callsite.level)
            .into_level()
            .unwrap_or(Level::ERROR),
        callsite.file.as_ref().map(borrowed),
        callsite.line,
        callsite.module.as_ref().map(borrowed),
        FieldSet::new(&site.names, identify_callsite!(site)),
        if callsite.is_span {
            Kind::SPAN
        } else {
            Kind::EVENT
        },
    );
    let _ = site.fields.set(metadata.fields().iter().collect());
    let _ = site.metadata.set(metadata);
    site
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callsite(line: u32, fields: &[&'static str]) -> Callsite<'static> {
        Callsite {
            is_span: false,
            level: LogLevel::Info,
            name: "event".into(),
            target: "here".into(),
            module: None,
            file: None,
            line: Some(line),
            fields: fields.iter().map(|field| Cow::from(*field)).collect(),
        }
    }

    #[test]
    fn equal_descriptions_share_a_callsite_and_added_fields_come_last() {
        let site = find(&callsite(1, &["message", "task"]));
        assert!(std::ptr::eq(site, find(&callsite(1, &["message", "task"]))));
        assert!(!std::ptr::eq(
            site,
            find(&callsite(2, &["message", "task"]))
        ));
        let names = [
            "message",
            "task",
            "worker",
            "pid",
            "host",
            "pool.task",
            "input",
        ];
        assert_eq!(site.names(), names);
        let many = ["a"; 40];
        assert_eq!(find(&callsite(1, &many)).names().len(), FIELDS_MAX);
    }

    #[test]
    fn a_limited_number_is_distinguished() {
        let mut sites = Sites::default();
        for line in 0..SITES_MAX as u32 {
            assert!(!sites.find(&callsite(line, &["message"])).is_any);
        }
        let more = SITES_MAX as u32;
        assert!(sites.find(&callsite(more, &["one", "message"])).is_any);
        assert!(!sites.find(&callsite(0, &["message"])).is_any);
        assert_eq!((sites.known.len(), sites.any.len()), (SITES_MAX, 1));
    }
}
