//! The struct is as visible as the function was.

#![deny(unreachable_pub)]

mod outer {
    pub(crate) mod inner {
        use pool_core::pool_task;

        #[pool_task]
        pub(crate) fn everywhere() -> u8 {
            1
        }

        #[pool_task]
        pub(super) fn above() -> u8 {
            private()
        }

        #[pool_task(handle = InOuter)]
        pub(in crate::outer) fn in_outer() -> u8 {
            3
        }

        #[pool_task]
        fn private() -> u8 {
            2
        }
    }

    pub(crate) fn sum() -> u8 {
        inner::above() + inner::in_outer() + inner::InOuter()
    }
}

use outer::inner::everywhere;

fn main() {
    assert_eq!(everywhere(), 1);
    assert_eq!(outer::sum(), 8);
}
