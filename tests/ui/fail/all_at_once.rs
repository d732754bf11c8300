use pool_core::pool_task;

#[pool_task(nam = "first", handle = first)]
async unsafe fn first<T>(
    numbers: &mut Vec<T>,
    name: Option<&str>,
    show: impl ToString,
    other: &'static str,
) -> &T {
    &numbers[0]
}

fn main() {}
