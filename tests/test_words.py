from pipeline.words import plural


def test_one_is_singular_and_all_else_plural() -> None:
    assert [plural(count, "set") for count in (0, 1, 2, 1000)] == ["0 sets", "1 set", "2 sets", "1,000 sets"]
    assert plural(1, "shard directory", "shard directories") == "1 shard directory"
    assert plural(2, "shard directory", "shard directories") == "2 shard directories"
