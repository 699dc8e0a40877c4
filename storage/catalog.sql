-- What the catalog has besides one view a table: views made of views, and table macros. `views.py` runs this file
-- after it made the views over Parquet, the tables of the lake's JSON records, and these macros of constants, which
-- DuckDB folds before it opens a file, so that only the files of that run or version are read:
--   artifacts_of(run)          the artifacts of a run
--   ingest_of(run)             the ingest artifact of a run; of the newest run for ''
--   dataset_of(name, version)  'dataset/NAME@vN'; latest_of(name) that of the newest version

create view every_row as
  select * from rows union all by name select * exclude (dataset, version) from dataset_rows;

-- Real records at ingest: read = kept + sum(dropped), for each artifact and source.
create view accounting_all as
with each_source as (
  select artifact, source, count(*) as n_read from records group by all),
named as (
  select artifact, source, row_id, count(*) as n from records where reason is null group by all),
lines as (
  select artifact, row_id, reason, row_number() over (partition by artifact, row_id order by reason) as nth
  from ledger where stage = 'ingest' and decision = 'drop'),
lost as (
  select artifact, source, reason from records where reason is not null
  union all
  select named.artifact, named.source, coalesce(lines.reason, 'unnamed') from lines join named
    on named.artifact = lines.artifact and named.row_id = lines.row_id and lines.nth <= named.n),
counted as (
  select artifact, source, reason, count(*) as n_lost from lost group by all)
select s.artifact, s.source, s.n_read as read,
  (s.n_read - coalesce(sum(c.n_lost) over (partition by s.artifact, s.source), 0))::bigint as kept,
  c.reason, coalesce(c.n_lost, 0) as dropped
from each_source s left join counted c on c.artifact = s.artifact and c.source = s.source;

create view accounting as
  select * exclude (artifact) from accounting_all where artifact = ingest_of('')
  order by source, dropped desc, reason;

create macro curated(dataset_name) as table
select * from dataset_rows where artifact = latest_of(dataset_name);

create macro curated_at(dataset_name, version_number) as table
select * from dataset_rows where artifact = dataset_of(dataset_name, version_number);

-- Ids first: the text of both versions is then read once, and only what changed is kept.
create macro what_changed(dataset_name, v1, v2) as table
with old as (select row_id from dataset_rows where artifact = dataset_of(dataset_name, v1)),
     new as (select row_id from dataset_rows where artifact = dataset_of(dataset_name, v2)),
     changed as materialized (
       select 'added' as change, dataset_of(dataset_name, v2) as artifact, row_id from new anti join old using (row_id)
       union all
       select 'removed', dataset_of(dataset_name, v1), row_id from old anti join new using (row_id))
select change, r.* exclude (artifact, dataset, version) from dataset_rows r join changed using (artifact, row_id)
where r.artifact in (dataset_of(dataset_name, v1), dataset_of(dataset_name, v2))
order by change, row_id;

create macro explain_row(id) as table
with mine as materialized (
  select row_id, artifact, origin, source, split, label, licence, parents, prompt, response
  from every_row where row_id = id)
select what, detail from (
  select distinct 1 as step, 'record' as what, concat_ws(', ', 'source ' || source, 'file ' || file,
    'record ' || position, 'not a row: ' || reason) as detail from records where row_id = id
  union all by name
  select distinct 2 as step, 'row' as what, concat_ws(', ', origin, 'source ' || source, 'split ' || split,
    'label ' || label, 'licence ' || licence,
    'parents ' || nullif(array_to_string(parents, ' '), '')) as detail from mine
  union all by name
  select distinct 3 as step, 'prompt' as what, prompt as detail from mine
  union all by name
  select distinct 4 as step, 'response' as what, response as detail from mine
  union all by name
  select distinct 5 as step, 'ledger' as what, concat_ws(', ', stage, 'round ' || "round", decision, reason,
    'value ' || "value", 'threshold ' || threshold, 'twin ' || twin) as detail from ledger where row_id = id
  union all by name
  select distinct 6 as step, 'score' as what, concat_ws(', ', 'proxy ' || proxy, scorer || ' = ' || "value")
    as detail from scores where row_id = id
  union all by name
  select distinct 7 as step, 'region' as what, concat_ws(', ', 'proxy ' || proxy, scale || ' region ' || region,
    'distance ' || distance) as detail from regions where row_id = id
  union all by name
  select distinct 8 as step, 'selection' as what, concat_ws(', ', 'round ' || "round", phase, 'arm ' || arm,
    'replicate ' || replicate, 'rank ' || "rank") as detail from selections where row_id = id
  union all by name
  select distinct 9 as step, 'child' as what, row_id as detail
    from rows where starts_with(artifact, 'synthesize/') and list_contains(parents, id)
  union all by name
  select distinct 10 as step, 'dataset' as what, artifact as detail from mine
    where starts_with(artifact, 'dataset/')
) order by step, detail;

create macro drops(run_id := '') as table
select source, file, position, row_id, reason, null::double as "value", null::double as threshold,
  null::varchar as twin from records where artifact = ingest_of(run_id) and reason is not null
union all by name
select r.source, r.file, r.position, l.row_id, l.reason, l."value", l.threshold, l.twin
  from (select * from ledger where artifact = ingest_of(run_id) and stage = 'ingest' and decision = 'drop') l
  left join (select * from records where artifact = ingest_of(run_id) and reason is null) r using (row_id)
order by source, file, position, reason;

create macro thin_regions(run_id) as table
select s."round", t.* exclude (artifact, thin) from region_table t
  join (select distinct artifact, "round" from steps where run = run_id and stage = 'score') s using (artifact)
where t.artifact in artifacts_of(run_id) and t.thin
order by s."round", t.proxy, t.scale, t.density, t.region;

-- The scorer stands for `previous` where no model was trained to be compared. A control's differences are those of
-- the arms that it was compared with, turned round. `stands_for`: the rows that an arm is about, whole (an arm's own
-- rows are a subsample in each replicate); a dataset version is found by equal rows, because a base that was found
-- again keeps the number it had.
create macro path_of(run_id, round_number, arm_name, suite_name, metric_name) as table
with compared as (
  select * from comparisons where artifact in artifacts_of(run_id) and "round" = round_number
    and suite = suite_name and metric = metric_name),
numbers as (
  select phase, string_agg(format('{}: {:+.4g}', other, difference)
    || coalesce(format(' [{:.4g}, {:.4g}]', low, high), '') || ', n=' || n, '; ' order by other) as differences
  from (
    select phase, control as other, difference, low, high, n from compared where arm = arm_name
    union all
    select phase, arm, 0 - difference, 0 - high, 0 - low, n from compared where control = arm_name)
  group by phase),
trained as (
  select *, case arm when 'previous' then base when 'candidate' then (
      select max(artifact) from steps
      where run = run_id and stage in ('base', 'unpublished') and "round" = round_number) end as stands_for
  from models where artifact in artifacts_of(run_id) and "round" = round_number and arm = arm_name
  qualify kind = 'compared' or count(*) filter (kind = 'compared') over (partition by phase) = 0),
sets as (
  select artifact, count(*) as n, bit_xor(hash(row_id)) as content from rows
  where artifact in artifacts_of(run_id) and artifact in (select stands_for from trained) and world = 0
  group by artifact),
versions as (
  select artifact as version, count(*) as n, bit_xor(hash(row_id)) as content from dataset_rows group by artifact
  union all
  select artifact, count(*), bit_xor(hash(row_id)) from rows where starts_with(artifact, 'candidate/')
  group by artifact),
named as (
  select artifact as stands_for, string_agg(version, ', ' order by version) as dataset
  from sets join versions using (n, content) group by all),
members as (
  select * from selections
  where artifact in artifacts_of(run_id) and "round" = round_number and arm = arm_name),
texts as (
  select row_id, any_value(origin) as origin, any_value(source) as source, any_value(parents) as parents
  from rows where artifact in artifacts_of(run_id) and row_id in (select row_id from members) group by row_id),
places as (
  select row_id, min({'file': file, 'position': position}) as place from records
  where artifact in artifacts_of(run_id) and reason is null and row_id in (select row_id from members)
  group by row_id)
select c.phase, c.differences, t.model, t.replicate, d.dataset, m.row_id, m."rank", e.origin, e.source,
  p.place.file as file, p.place.position as position, e.parents
from numbers c
  join trained t on t.phase = if(c.phase = 'sealed', 'confirm', c.phase)
  join members m on m.phase = t.phase and m.replicate = t.replicate
  left join named d on d.stands_for = t.stands_for
  left join texts e on e.row_id = m.row_id
  left join places p on p.row_id = m.row_id
order by c.phase, t.replicate, m."rank", m.row_id;
