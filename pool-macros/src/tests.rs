//! Snapshots of what the attribute emits.
//!
//! The package `tests` compiles the emitted code and checks what it does; these tests show
//! reviewers what changed in the expansion.

use crate::expand_attribute;

/// Expands `#[pool_task(args)] item` and prints it as code.
fn expand(args: &str, item: &str) -> String {
    let args = args.parse().expect("the arguments of a test are tokens");
    let item = item.parse().expect("the item of a test is tokens");
    let expansion = expand_attribute(args, item);
    let file = syn::parse2(expansion).expect("the expansion is a list of items");
    prettyplease::unparse(&file)
}

macro_rules! snapshots {
    ($($name:ident: ($args:literal, $item:literal),)*) => {
        $(
            #[test]
            fn $name() {
                insta::with_settings!({ description => $item, omit_expression => true }, {
                    insta::assert_snapshot!(expand($args, $item));
                });
            }
        )*
    };
}

snapshots! {
    one_argument: ("", "/// Squares.\npub fn square(x: u64) -> u64 { x * x }"),
    no_argument: ("", "fn tick() {}"),
    references: (
        "",
        "fn read(name: &str, path: &Path, bytes: &[u8], rows: &[Row], row: &Row) -> Option<Row> { None }"
    ),
    bytes: ("", "fn flip(mut bytes: Vec<u8>, mask: &std::vec::Vec<u8>) -> Vec<u8> { bytes }"),
    patterns: ("", "fn add((a, b): (u32, u32), Point { x, .. }: Point, _: u8) -> u32 { a + b + x }"),
    name: ("name = \"resize\"", "fn resize_v2(x: u64) -> u64 { x }"),
    handle: ("handle = Square", "/// Squares.\n#[inline]\npub(crate) const fn square(x: u64) -> u64 { x * x }"),
    core_path: ("crate = facade::pool_core", "fn tick() {}"),
    attributes: (
        "",
        "#[cfg(unix)]\n/// Old.\n#[deprecated = \"use `new`\"]\n#[expect(unused_variables, reason = \"r\")]\n#[inline]\n#[cfg_attr(feature = \"x\", doc = \"More.\", cold)]\nfn old(x: u64) {}"
    ),
    raw_name: ("", "fn r#match(x: u64) -> u64 { x }"),
    wrong_option: ("nam = \"x\", handle = Tick", "fn tick() {}"),
    wrong_function: ("", "async fn first<T>(x: Vec<T>) -> T { x.remove(0) }"),
    not_a_function: ("", "struct Square;"),
}
