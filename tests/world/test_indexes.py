from pathlib import Path

import pytest

from mmsearch_trl.search.image.index import ImageIndex
from mmsearch_trl.search.text.bm25 import TextIndex
from mmsearch_trl.world.emblems import THUMBNAIL_SIZE, draw
from mmsearch_trl.world.indexes import WorldIndexes, build_indexes
from mmsearch_trl.world.world import Fact, Group, World


WORLD = World(0)


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> WorldIndexes:
    return build_indexes(WORLD, tmp_path_factory.mktemp("world"))


def test_a_shifted_picture_finds_its_own_entity_first_by_pixels(indexes: WorldIndexes) -> None:
    index = ImageIndex.open(indexes.image)
    assert len(index) == 234
    for group in Group:
        for task in WORLD.tasks(group):
            if task.extra["fact"] == Fact.NAME:
                hits = index.search_now(task.images[0], 3)
                assert hits[0].title == task.answers[0], task.id


def test_the_thumbnail_of_a_hit_is_the_drawn_one_to_the_pixel(indexes: WorldIndexes) -> None:
    entity = WORLD.groups[Group.HELD_OUT][0]
    hit = ImageIndex.open(indexes.image).search_now(draw(entity.emblem), 1)[0]
    assert hit.thumbnail is not None
    assert hit.thumbnail.size == (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    assert hit.thumbnail.tobytes() == draw(entity.emblem, THUMBNAIL_SIZE).tobytes()


def test_a_name_finds_its_passage_first_and_others_that_share_a_syllable(indexes: WorldIndexes) -> None:
    index = TextIndex.open(indexes.text)
    for entity in WORLD.entities:
        hits = index.search_now(entity.name, 3)
        assert (hits[0].title, hits[0].text) == (entity.name, entity.passage)
        assert len(hits) == 3
        assert all(set(hit.title.split()) & set(entity.name.split()) for hit in hits)


def test_building_again_replaces_the_indexes(tmp_path: Path) -> None:
    first = ImageIndex.open(build_indexes(World(1), tmp_path).image).fingerprint
    assert ImageIndex.open(build_indexes(World(1), tmp_path).image).fingerprint == first
    assert ImageIndex.open(build_indexes(World(2), tmp_path).image).fingerprint != first
