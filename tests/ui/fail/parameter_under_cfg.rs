use pool_core::pool_task;

#[pool_task]
fn scale(width: u32, #[cfg(unix)] factor: u32) -> u32 {
    width * factor
}

fn main() {}
