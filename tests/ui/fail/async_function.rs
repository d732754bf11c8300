use pool_core::pool_task;

#[pool_task]
async fn fetch(url: String) -> String {
    url
}

fn main() {}
