use pool_core::pool_task;

#[derive(serde::Serialize)]
struct Tile {
    width: u32,
}

#[pool_task]
fn width_of(tile: &Tile) -> u32 {
    tile.width
}

#[pool_task]
fn widths_of(tiles: &[Tile]) -> Vec<u32> {
    tiles.iter().map(|tile| tile.width).collect()
}

#[pool_task]
fn tile_of(width: u32) -> Tile {
    Tile { width }
}

fn main() {}
