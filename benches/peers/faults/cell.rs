//! A cell of the table: what was seen, in words; `ok` if it is as it should be.

use crate::Contender;
use crate::fault::{Expected, FAULTY, Fault};
use crate::keeper::{End, Seen};
use crate::report::{Closing, Line, Outcome};

/// From how many seconds on the end of a pool is worth mentioning.
const SLOW: u64 = 3;

/// Puts what was seen into words.
pub(crate) fn words(pool: Contender, fault: Fault, seen: &Seen) -> String {
    let mut words = Vec::new();
    match (fault, seen.end) {
        (Fault::ProgramKilled, End::Signal(libc::SIGKILL)) => {}
        _ => words.extend(course(pool, fault, seen)),
    }
    // A program that has not ended has not left anything behind yet.
    if !has_not_ended(seen) {
        let left = [
            counted(seen.processes, "process", "processes"),
            counted(seen.zombies, "zombie", "zombies"),
            counted(seen.files.len(), "file", "files"),
        ];
        let left: Vec<_> = left.into_iter().flatten().collect();
        if !left.is_empty() {
            words.push(format!("leaves {}", left.join(" and ")));
        }
    }
    if words.is_empty() {
        return "ok".to_owned();
    }
    words.join(", ")
}

fn counted(count: usize, one: &str, more: &str) -> Option<String> {
    (count > 0).then(|| format!("{count} {}", if count == 1 { one } else { more }))
}

fn has_not_ended(seen: &Seen) -> bool {
    seen.end == End::Hangs || matches!(closing(seen), Some((Closing::Hangs, _)))
}

fn closing(seen: &Seen) -> Option<(Closing, u64)> {
    seen.lines.iter().find_map(|line| match line {
        Line::Closed(closing, seconds) => Some((*closing, *seconds)),
        _ => None,
    })
}

/// Lists what went wrong from the first batch to the end of the program.
fn course(pool: Contender, fault: Fault, seen: &Seen) -> Vec<String> {
    let first = seen.lines.iter().find_map(|line| match line {
        Line::First(outcomes) => Some(outcomes),
        _ => None,
    });
    let later = seen.lines.iter().filter_map(|line| match line {
        Line::Later(outcomes) => Some(outcomes),
        _ => None,
    });
    let mut words = Vec::new();
    if let Some(first) = first {
        let (before, rest) = first.split_at(FAULTY as usize);
        let (faulty, after) = rest.split_at(1);
        words.extend(faulty.iter().filter_map(|it| own(pool, fault, it, seen)));
        let others: Vec<_> = before.iter().chain(after).collect();
        words.extend(crowd(&others, "other", "others"));
    }
    // If there are two, nothing came back from the first. The last one shows whether the pool recovered, the first one
    // what was lost.
    match later.collect::<Vec<_>>()[..] {
        [] => {}
        [.., last] if !last.contains(&Outcome::Right) => {
            words.push(if last.contains(&Outcome::NoAnswer) {
                "pool hangs".to_owned()
            } else {
                "pool broken".to_owned()
            })
        }
        [some, ..] => {
            let all: Vec<_> = some.iter().collect();
            words.extend(crowd(&all, "later one", "later ones"));
        }
    }
    let closing = closing(seen);
    match closing {
        Some((Closing::Orderly, seconds)) if seconds >= SLOW => {
            words.push(format!("close takes {seconds} s"));
        }
        Some((Closing::Orderly, _)) | None => {}
        Some((Closing::Forced, _)) => words.push("close hangs".to_owned()),
        Some((Closing::Hangs, _)) => words.push("can't be ended".to_owned()),
    }
    match (seen.end, closing) {
        (End::Code(0), Some(_)) | (End::Hangs, Some((Closing::Hangs, _))) => {}
        (End::Code(code), _) => words.push(format!("program exits with {code}")),
        (End::Signal(signal), _) => words.push(format!("program dies of signal {signal}")),
        (End::Hangs, Some(_)) => words.push("program can't exit".to_owned()),
        (End::Hangs, None) => words.push("program hangs".to_owned()),
    }
    words
}

/// Says what is wrong with the outcome of the faulty input, if anything.
fn own(pool: Contender, fault: Fault, outcome: &Outcome, seen: &Seen) -> Option<String> {
    let words = match (fault.expected(), outcome) {
        (Expected::Value | Expected::Error, Outcome::Right)
        | (Expected::Error, Outcome::Error(_) | Outcome::MemoryLimit(_))
        | (Expected::TimeLimit, Outcome::TimeLimit(_) | Outcome::Right)
        | (Expected::MemoryLimit, Outcome::MemoryLimit(_)) => return None,
        (Expected::MemoryLimit, Outcome::Right) if seen.large == 0 => "not stopped, but replaced",
        (Expected::MemoryLimit, Outcome::Right) => "no memory limit",
        (Expected::TimeLimit, Outcome::NoAnswer) if !pool.has_time_limit() => "no time limit",
        (_, Outcome::NoAnswer) => "no answer",
        (_, Outcome::TimeLimit(_)) => "only its time limit ends it",
        (_, Outcome::Wrong) => "wrong result",
        (_, Outcome::Error(_) | Outcome::MemoryLimit(_)) => "result lost",
    };
    Some(words.to_owned())
}

/// Says how many healthy inputs did not get their results.
fn crowd(outcomes: &[&Outcome], one: &str, more: &str) -> Vec<String> {
    let [mut failed, mut silent, mut wrong] = [0, 0, 0];
    for outcome in outcomes {
        match outcome {
            Outcome::Right => {}
            Outcome::Wrong => wrong += 1,
            Outcome::NoAnswer => silent += 1,
            Outcome::Error(_) | Outcome::TimeLimit(_) | Outcome::MemoryLimit(_) => failed += 1,
        }
    }
    let mut words = Vec::new();
    let mut say = |count, singular, plural| match count {
        0 => {}
        1 => words.push(format!("1 {one} {singular}")),
        _ => words.push(format!("{count} {more} {plural}")),
    };
    say(failed, "fails", "fail");
    say(silent, "never answers", "never answer");
    say(wrong, "is wrong", "are wrong");
    words
}
