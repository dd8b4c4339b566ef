from django.contrib.postgres import operations
from django.db import migrations, models


class AddIndexConcurrently(operations.AddIndexConcurrently):
    """Builds an index on PostgreSQL while others write; elsewhere as any index is built."""

    def database_forwards(self, app_label, schema_editor, from_state, to_state):
        plain = schema_editor.connection.vendor != 'postgresql'
        how = migrations.AddIndex if plain else operations.AddIndexConcurrently
        how.database_forwards(self, app_label, schema_editor, from_state, to_state)

    def database_backwards(self, app_label, schema_editor, from_state, to_state):
        plain = schema_editor.connection.vendor != 'postgresql'
        how = migrations.AddIndex if plain else operations.AddIndexConcurrently
        how.database_backwards(self, app_label, schema_editor, from_state, to_state)


class RemoveIndexConcurrently(operations.RemoveIndexConcurrently):
    """Drops an index on PostgreSQL while others read and write."""

    def database_forwards(self, app_label, schema_editor, from_state, to_state):
        plain = schema_editor.connection.vendor != 'postgresql'
        how = migrations.RemoveIndex if plain else operations.RemoveIndexConcurrently
        how.database_forwards(self, app_label, schema_editor, from_state, to_state)

    def database_backwards(self, app_label, schema_editor, from_state, to_state):
        plain = schema_editor.connection.vendor != 'postgresql'
        how = migrations.RemoveIndex if plain else operations.RemoveIndexConcurrently
        how.database_backwards(self, app_label, schema_editor, from_state, to_state)


class Migration(migrations.Migration):

    atomic = False

    dependencies = [
        ('recorder', '0003_recorded_once_per_entry'),
    ]

    operations = [
        AddIndexConcurrently(
            model_name='recordedenvelope',
            index=models.Index(fields=['tenant', '-timestamp'], name='recorded_by_tenant'),
        ),
        RemoveIndexConcurrently(
            model_name='recordedenvelope',
            name='recorded_by_scope',
        ),
    ]
