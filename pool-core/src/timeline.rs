//! A timeline: what happened in a pool, to be looked at.
//!
//! | module | |
//! |---|---|
//! | `model` | what is recorded, as plain data |
//! | `trace` | the same in Chrome's trace format, for Perfetto |
//! | `html` | the same as a page that draws it |

#![cfg_attr(
    not(test),
    expect(dead_code, reason = "what collects a recording is yet to come")
)]

mod html;
mod model;
mod trace;
