//! The guide: how to use the pool, from the first program to many machines. (These pages are for reading; they have no items.)
//!
//! | chapter | answers |
//! |---|---|
//! | [First steps](first_steps) | How do I start? Which functions can be tasks? Which method do I call? How does a pool end? |
//! | [Getting data to workers](data) | How do tasks get what they read, and what does each way cost? |
//! | [Errors and retries](errors) | What happens to the other inputs when one fails? What does each error mean? How is an input run again? |
//! | [Limits and isolation](limits) | How do I stop a task that hangs, leaks or crashes? What can a task still do to the rest? |
//! | [Sandboxed workers](sandbox) | How do I run code that reads hostile data, so that it can do nothing else? What does a task need in there? |
//! | [Output, logs and progress](output) | Where does what a task prints go? What did a library say before it crashed? How far is a call? What are the workers doing, and where does the time go? |
//! | [Async services](services) | How do I use the pool from async code? What if a client goes away? How does a service shut down? |
//! | [Tests and benches](testing) | How do I test code that uses a pool? Why is my bench slow? |
//! | [Many workers, many machines](machines) | How many workers? What do many of them need? How does the program run on several hosts? |
//! | [Coming from Python, rayon or Ray](coming_from) | What is the equivalent of a feature that I know? |
//! | [How it works](how_it_works) | What happens between the call and the result, and why is it safe? |
//! | [Recipes](recipes) | A pool for the whole program, several pools, C libraries, logging in workers, matching errors, and more. |
//!
//! In a hurry? Read [First steps](first_steps) and the table of errors in [Errors and retries](errors#which-error-means-what), and copy one of the
//! [examples](https://github.com/pool-rs/pool/blob/main/examples/README.md).

// The programs in the chapters use other crates as well, so they run as doctests of the crate `tests`, which depends on those.
macro_rules! chapters {
    ($($name:ident)*) => {
        $(
            #[cfg_attr(not(doctest), doc = include_str!(concat!("../guide/", stringify!($name), ".md")))]
            pub mod $name {}
        )*
    };
}

chapters! {
    first_steps
    data
    errors
    limits
    sandbox
    output
    services
    testing
    machines
    coming_from
    how_it_works
    recipes
}
