use pool_core::pool_task;

#[pool_task]
fn width_of(tile: Tile) -> Length {
    tile.0
}

fn main() {}
