def write(rows, note, folder): pass
