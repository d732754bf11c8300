//! Paths, whatever their bytes; and the types of ipc-channel, which are refused.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use pool_core::{Error, Shared, Side, TaskError, pool_task};
use serde::{Deserialize, Serialize};

use crate::support::{builder, checked, pool, watchdog, works};

/// A path that is not UTF-8.
const ODD: &[u8] = b"/tmp/\xff\xfe/name";

fn odd() -> PathBuf {
    PathBuf::from(OsString::from_vec(ODD.to_vec()))
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

#[pool_task]
fn look(path: &Path) -> Vec<u8> {
    bytes(path)
}

#[pool_task(format = "msgpack")]
fn look_described(path: PathBuf) -> Vec<u8> {
    bytes(&path)
}

#[pool_task]
#[expect(clippy::ptr_arg, reason = "that is the point")]
fn look_by_full_path(path: &std::path::PathBuf, name: std::ffi::OsString) -> (Vec<u8>, Vec<u8>) {
    (bytes(path), name.into_vec())
}

#[pool_task]
fn join(path: PathBuf, name: &OsStr) -> PathBuf {
    path.join(name)
}

#[test]
fn as_an_argument_in_every_kind_of_call() -> Result<(), Error> {
    let _dog = watchdog();
    let pool = pool(2);
    assert_eq!(pool.apply(look, (odd(),))?, ODD);
    assert_eq!(pool.map(look, [odd(), "text".into()])?, [ODD, b"text"]);
    assert_eq!(
        pool.map(look_described, [odd(), "text".into()])?,
        [ODD, b"text"]
    );
    for result in pool.imap_unordered(look, [odd(), odd()]) {
        assert_eq!(result?, ODD);
    }
    let name = odd().into_os_string();
    let both = pool.apply(look_by_full_path, (odd(), name.clone()))?;
    assert_eq!(both, (ODD.to_vec(), ODD.to_vec()));
    // Lent, and bound.
    assert_eq!(
        pool.task(look).by_ref().map([&odd(), Path::new("text")])?,
        [ODD, b"text"]
    );
    assert_eq!(pool.task(look_described).by_ref().map(&[odd()])?, [ODD]);
    let relative = OsString::from_vec(vec![0xff]);
    let joined = odd().join(&relative);
    let call = pool.task(join).partial((odd(),));
    assert_eq!(call.map(vec![relative.clone()])?, vec![joined.clone()]);
    let (path, lent) = (odd(), pool.task(join).by_ref());
    assert_eq!(lent.partial((&path,)).map([&relative])?, [joined]);
    works(&pool);
    Ok(())
}

#[pool_task]
fn maybe(path: Option<PathBuf>) -> Result<Option<PathBuf>, TaskError> {
    path.map(|path| Ok(path.join("more"))).transpose()
}

#[pool_task]
fn many(paths: Vec<PathBuf>, more: &[PathBuf]) -> (Vec<PathBuf>, usize) {
    let count = more.len();
    ([paths, more.to_vec()].concat(), count)
}

#[pool_task]
fn failed(path: PathBuf) -> Result<(), PathBuf> {
    Err(path)
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Job {
    source: PathBuf,
    by_name: BTreeMap<String, (Box<Path>, OsString)>,
}

#[pool_task]
fn same(job: &Job) -> Job {
    job.clone()
}

#[pool_task(format = "msgpack")]
fn same_described(job: Job) -> Job {
    job
}

#[test]
fn wherever_it_stands() -> Result<(), Error> {
    let _dog = watchdog();
    let pool = pool(1);
    let result = pool.map(maybe, [Some(odd()), None])?;
    assert_eq!(result, [Ok(Some(odd().join("more"))), Ok(None)]);
    let all = pool.apply(many, (vec![odd(), "text".into()], vec![odd()]))?;
    assert_eq!(all, (vec![odd(), "text".into(), odd()], 1));
    assert_eq!(pool.apply(failed, (odd(),))?, Err(odd()));
    let job = Job {
        source: odd(),
        by_name: [("a".to_owned(), (odd().into(), odd().into()))].into(),
    };
    assert_eq!(pool.apply(same, (job.clone(),))?, job);
    assert_eq!(pool.apply(same_described, (job.clone(),))?, job);
    assert_eq!(pool.task(same).by_ref().map([&job])?, [job]);
    Ok(())
}

static GIVEN: OnceLock<PathBuf> = OnceLock::new();

#[pool_task]
fn keep(path: PathBuf) {
    assert!(GIVEN.set(path).is_ok());
}

#[pool_task]
fn given(shared: Shared<Vec<PathBuf>>) -> [PathBuf; 2] {
    [
        GIVEN.get().expect("it was given").clone(),
        shared[0].clone(),
    ]
}

#[test]
fn for_an_initializer_and_in_what_is_shared() -> Result<(), Error> {
    let _dog = watchdog();
    let pool = checked(builder().processes(1).initializer(keep, (odd(),)).build());
    let shared = Shared::new(vec![odd()])?;
    assert_eq!(pool.apply(given, (shared,))?, [odd(), odd()]);
    Ok(())
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Hidden(PathBuf);

#[pool_task]
fn hidden(_: Hidden) {}

#[test]
fn a_path_that_is_hidden_is_refused_with_advice() {
    let _dog = watchdog();
    let pool = pool(1);
    let error = pool.apply(hidden, (Hidden(odd()),)).unwrap_err();
    assert!(matches!(&error, Error::Encode(codec) if codec.side() == Side::Arguments));
    let text = error.to_string();
    assert!(
        text.contains("path contains invalid UTF-8 characters"),
        "{text}"
    );
    assert!(text.contains("`OsString`"), "{text}");
    works(&pool);
}

#[pool_task]
fn tell(_: ipc_channel::ipc::IpcSender<u8>) {}

#[pool_task]
fn hear(_: Option<ipc_channel::ipc::IpcReceiver<u8>>) {}

#[test]
fn what_ipc_channel_sends_is_refused_and_unharmed() {
    let _dog = watchdog();
    let pool = pool(1);
    let (sender, receiver) = ipc_channel::ipc::channel().expect("a channel");
    let errors = [
        pool.apply(tell, (sender.clone(),)).unwrap_err(),
        pool.map(tell, [sender.clone()]).map(|_| ()).unwrap_err(),
        pool.task(hear)
            .by_ref()
            .apply((&Some(receiver),))
            .unwrap_err(),
    ];
    for error in &errors {
        assert!(matches!(error, Error::Encode(_)), "{error:?}");
        assert!(
            error.to_string().contains("`pool_core::channel`"),
            "{error}"
        );
    }
    works(&pool);
    // This thread can still use ipc-channel.
    let (sender, receiver) = ipc_channel::ipc::channel().expect("a channel");
    sender.send(7).expect("it is open");
    assert_eq!(receiver.recv().expect("it is open"), 7);
}
