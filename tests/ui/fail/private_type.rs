mod tiles {
    use pool_core::pool_task;

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Tile(u32);

    #[pool_task]
    pub fn width_of(tile: Tile) -> u32 {
        tile.0
    }
}

fn main() {}
