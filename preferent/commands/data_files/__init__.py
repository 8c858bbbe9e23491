"""What `data check` and `data convert` do with files of rows and with exports of feedback."""
