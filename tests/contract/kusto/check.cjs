// Prints one line for each diagnostic of Microsoft's language service for KQL; nothing where all queries are valid.
// Standard input: {"tables": {"Table": {"Column": "type"}}, "queries": {"name": "text"}}.
const fs = require('fs');
const path = require('path');
const vm = require('vm');

const folder = path.dirname(require.resolve('@kusto/language-service-next/package.json'));
for (const file of ['bridge.min.js', 'Kusto.Language.Bridge.min.js']) {
  vm.runInThisContext(fs.readFileSync(path.join(folder, file), 'utf8'), file);
}

const { tables, queries } = JSON.parse(fs.readFileSync(0, 'utf8'));
const symbols = Object.entries(tables).map(([name, columns]) => {
  const schema = Object.entries(columns).map(([column, type]) => `${column}:${type}`);
  return new Kusto.Language.Symbols.TableSymbol.$ctor7(name, `(${schema.join(', ')})`, null);
});
const database = new Kusto.Language.Symbols.DatabaseSymbol.ctor('workspace', symbols);
const globals = Kusto.Language.GlobalState.Default.WithDatabase(database);

for (const [name, text] of Object.entries(queries)) {
  const code = Kusto.Language.KustoCode.ParseAndAnalyze(text, globals);
  for (const { Message, Start } of Bridge.toArray(code.GetDiagnostics())) {
    const line = text.slice(0, Start).split('\n').length;
    console.log(`${name}, line ${line}: ${Message}`);
  }
}
