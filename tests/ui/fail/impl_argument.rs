use pool_core::pool_task;

#[pool_task]
fn show(value: impl ToString) -> String {
    value.to_string()
}

fn main() {}
