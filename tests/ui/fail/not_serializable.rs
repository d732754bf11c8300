use pool_core::pool_task;

struct Tile {
    width: u32,
}

#[pool_task]
fn width_of(tile: Tile) -> u32 {
    tile.width
}

#[pool_task]
fn tiles_of(widths: &[u32]) -> Vec<Tile> {
    widths.iter().map(|&width| Tile { width }).collect()
}

fn main() {}
