use pool_core::pool_task;

struct Tile;

impl Tile {
    #[pool_task]
    fn width(&self) -> u32 {
        0
    }
}

fn main() {
    Tile.width();
}
