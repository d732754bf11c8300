use pool_core::pool_task;

#[pool_task]
fn quit(code: i32) -> ! {
    std::process::exit(code)
}

fn main() {}
