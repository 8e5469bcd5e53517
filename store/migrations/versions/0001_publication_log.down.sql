drop view messages;
drop table publishers;
drop table idempotency_keys;
drop table publications;
drop table streams;
