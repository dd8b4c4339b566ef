from django.db import migrations, models


class AddConstraintConcurrently(migrations.AddConstraint):
    """Builds the constraint's index on PostgreSQL while others write: the table may be large."""

    def database_forwards(self, app_label, schema_editor, from_state, to_state):
        if schema_editor.connection.vendor != 'postgresql':
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        model = to_state.apps.get_model(app_label, self.model_name)
        sql = str(self.constraint.create_sql(model, schema_editor))
        # One that was interrupted leaves an index that is not valid.
        name = schema_editor.quote_name(self.constraint.name)
        schema_editor.execute(f'DROP INDEX CONCURRENTLY IF EXISTS {name}')
        schema_editor.execute(sql.replace('CREATE UNIQUE INDEX', 'CREATE UNIQUE INDEX CONCURRENTLY', 1))


class Migration(migrations.Migration):

    atomic = False

    dependencies = [
        ('recorder', '0002_exactly_once'),
    ]

    operations = [
        AddConstraintConcurrently(
            model_name='recordedenvelope',
            constraint=models.UniqueConstraint(condition=models.Q(('entry__isnull', False)), fields=('entry',), name='recorded_once_per_entry'),
        ),
    ]
