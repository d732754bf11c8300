//! Tasks of one name, in functions, modules and macros: their ids differ.

use pool_core::{Task, pool_task};

fn first() -> [&'static str; 2] {
    #[pool_task]
    fn helper(x: u64) -> u64 {
        x + 1
    }
    assert_eq!(helper(1), 2);
    [helper::NAME, helper::ID]
}

fn second() -> [&'static str; 2] {
    #[pool_task]
    fn helper(x: u64) -> u64 {
        x + 2
    }
    assert_eq!(helper(1), 3);
    [helper::NAME, helper::ID]
}

macro_rules! two {
    ($outer:ident) => {
        fn $outer() -> [&'static str; 2] {
            let one = {
                #[pool_task]
                fn helper() {}
                helper::ID
            };
            let other = {
                #[pool_task]
                fn helper() {}
                helper::ID
            };
            [one, other]
        }
    };
}

two!(third);
two!(fourth);

fn main() {
    let [name, first_id] = first();
    let [same_name, second_id] = second();
    assert_eq!(name, same_name);
    let [a, b] = third();
    let [c, d] = fourth();
    let ids = [first_id, second_id, a, b, c, d];
    let unique: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len(), "{ids:?}");
}
