from video_distilled_encoder.recent import Recent


def test_what_was_used_last_is_kept():
    made = []

    def make(key):
        made.append(key)
        return 10 * key

    recent = Recent(2)
    assert [recent.get(key, make) for key in (1, 2, 1, 3, 1, 2)] == [10, 20, 10, 30, 10, 20]
    assert made == [1, 2, 3, 2]
