use pool_core::pool_task;

#[pool_task]
fn first_word(text: &str) -> &str {
    text
}

fn main() {}
