from mmsearch_trl.world.world import CITIES, SYLLABLES, Fact, Group, World


def test_the_same_seed_makes_the_same_world() -> None:
    one, two = World(3), World(3)
    assert one.groups == two.groups and one.pool == two.pool
    assert [t.images[0].tobytes() for t in one.tasks(Group.KNOWN)] == [
        t.images[0].tobytes() for t in two.tasks(Group.KNOWN)
    ]
    assert World(4).groups != one.groups


def test_groups_pool_and_spare_names_share_nothing() -> None:
    world = World(0)
    emblems = [e.emblem for e in world.entities] + list(world.pool)
    assert len(set(emblems)) == len(emblems) == 24 + 150 + 60 + 300
    names = [frozenset(name.split()) for name in [*(e.name for e in world.entities), *world.spare_names]]
    assert len(set(names)) == len(names) and all(len(name) == 2 for name in names)


def test_words_are_distinct() -> None:
    assert len(set(SYLLABLES)) == 40 and len(set(CITIES)) == 24


def test_tasks_ask_every_fact_of_every_entity() -> None:
    world = World(0)
    tasks = world.tasks(Group.HELD_OUT)
    assert len({t.id for t in tasks}) == len(tasks) == 180
    assert {t.category for t in tasks} == {"search_required"}
    assert {t.category for t in world.tasks(Group.KNOWN)} == {"search_free"}
    first = world.groups[Group.HELD_OUT][0]
    assert [t.answers for t in tasks[:3]] == [(first.name,), (first.year,), (first.city,)]
    assert [t.question for t in tasks[:3]] == [fact.question for fact in Fact]
    assert all(t.images[0].size == (56, 56) and t.images[0].mode == "RGB" for t in tasks)


def test_training_is_half_known_and_half_unknown_and_never_held_out() -> None:
    tasks = World(0).training_tasks()
    groups = [t.extra["group"] for t in tasks]
    assert groups.count("known") == groups.count("unknown") == 450
    assert len({t.id for t in tasks}) == len(tasks)


def test_repetitions_of_a_known_task_are_jittered_differently() -> None:
    pictures: dict[str, set[bytes]] = {}
    for task in World(0).training_tasks():
        if task.extra["group"] == "known" and task.extra["fact"] == "name":
            pictures.setdefault(task.answers[0], set()).add(task.images[0].tobytes())
    assert len(pictures) == 24 and all(len(seen) > 1 for seen in pictures.values())
