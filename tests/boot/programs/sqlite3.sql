create table t(a integer primary key, b text, c real);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000)
insert into t select i, hex(i * 7919 % 10007), i / 7.0 from n;
create index tb on t(b);
select count(*), sum(c), avg(c), max(b), min(b) from t;
select b, c from t where b like '%3A%' order by c desc limit 20;
select group_concat(b, ',') from (select b from t order by b limit 50);
select round(c, 3), count(*) from t group by cast(c as integer) % 10 order by 1;
select sqlite_version(), abs(-5.5), printf('%.17g', 0.1);
