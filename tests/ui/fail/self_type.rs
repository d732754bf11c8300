use pool_core::pool_task;

struct Tile;

impl Tile {
    #[pool_task]
    fn new() -> Self {
        Tile
    }
}

fn main() {
    Tile::new();
}
