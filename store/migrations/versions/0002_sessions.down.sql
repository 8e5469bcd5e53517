drop table saved_sessions;
drop table session_keys;
